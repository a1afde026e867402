"""Stage 1: prompts -> token ids, prompt vectors, domains, and the disjoint parts that later stages use.

The vector is the engine's own `prompt_vector` over a prefill by the engine's own decoder, so that
calibration and serving see the same thing.
"""

import random
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from offline.domains import find_domains
from offline.prompts import PromptError, PromptSet
from offline.settings import CalibrationSettings
from offline.stage import StageRecord, Strict, digest_of, log, reused_or_made, write_atomically
from offline.workbench import Workbench
from server.engine import Decoder, TokenBatch, prompt_vector

MIN_PROMPTS = 3
PREFILL_CHUNK = 512


class Part(StrEnum):
    """What a prompt is for: placing anchors, scoring masks, or checking what was chosen."""

    ANCHOR = "anchor"
    SEARCH = "search"
    HELDOUT = "heldout"


class CollectedPrompt(Strict):
    domain: str
    part: Part
    ids: list[int]


class Collection(StageRecord):
    """The prompts in the order of the rows of the vector file."""

    prompts: list[CollectedPrompt]
    vector_file: str

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(prompt.domain for prompt in self.prompts))

    def chosen(self, domain: str, *parts: Part) -> list[int]:
        """Indices of a domain's prompts of these parts."""
        return [i for i, p in enumerate(self.prompts) if p.domain == domain and p.part in parts]

    def ids(self, domain: str, part: Part) -> list[list[int]]:
        return [self.prompts[i].ids for i in self.chosen(domain, part)]


def collect(bench: Workbench, prompt_set: PromptSet, settings: CalibrationSettings, work: Path) -> Collection:
    chosen = (settings.prompts_per_domain, settings.search_prompts, settings.heldout_prompts, settings.seed)
    digest = digest_of(bench.digest, prompt_set.digest, chosen, settings.continuation_tokens)

    def make() -> Collection:
        return make_collection(bench, prompt_set, settings, work, digest)

    return reused_or_made(work / "collect.json", Collection, digest, make)


def make_collection(
    bench: Workbench, prompt_set: PromptSet, settings: CalibrationSettings, work: Path, digest: str
) -> Collection:
    prompts = prompt_set.limited(settings.prompts_per_domain, settings.seed).prompts
    encoded = [bench.encode(prompt) for prompt in prompts]
    limit = bench.model.config.max_length - settings.continuation_tokens
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= limit]
    report_dropped(prompt_set.num_duplicates, len(encoded) - len(kept), limit)
    if not kept:
        raise PromptError(f"no prompt is within {limit} tokens, the model's context less the continuation")
    vectors = prompt_vectors(bench.model, [encoded[i] for i in kept])
    if prompt_set.is_labelled:
        domains = [prompts[i].domain or "" for i in kept]
    else:
        domains = find_domains(vectors.numpy(), [prompts[i].text for i in kept], settings.seed)
        log.info("domains found: %s", ", ".join(f"{name} ({n})" for name, n in Counter(domains).items()))
    parts = split(domains, settings.search_prompts, settings.heldout_prompts, settings.seed)
    # Named by digest: an interrupted run never leaves vectors that belong to another record.
    vector_file = f"vectors-{digest[:12]}.safetensors"
    write_atomically(work / vector_file, save({"vectors": vectors}))
    collected = [
        CollectedPrompt(domain=domain, part=part, ids=encoded[i])
        for i, domain, part in zip(kept, domains, parts, strict=True)
    ]
    return Collection(digest=digest, prompts=collected, vector_file=vector_file)


def report_dropped(num_duplicates: int, num_too_long: int, limit: int) -> None:
    if num_duplicates:
        log.info("%d repeated prompts dropped", num_duplicates)
    if num_too_long:
        log.info("%d prompts of more than %d tokens dropped", num_too_long, limit)


def read_vectors(collection: Collection, work: Path) -> Tensor:
    """Prompt vectors [prompts, hidden_size], fp32."""
    return load_file(work / collection.vector_file)["vectors"]


@torch.inference_mode()
def prompt_vectors(model: Decoder, prompts: Sequence[list[int]]) -> Tensor:
    """One vector per prompt [prompts, hidden_size], fp32, by a full pass in the engine's chunks."""
    cache = model.new_cache(1, max(map(len, prompts)))
    vectors = []
    for ids in tqdm(prompts, "prompt vectors", delay=2, leave=False):
        starts = range(0, len(ids), PREFILL_CHUNK)
        batches = [TokenBatch.of([(0, at, ids[at : at + PREFILL_CHUNK])], cache) for at in starts]
        hidden = torch.cat([model.forward(batch, cache) for batch in batches])
        vectors.append(prompt_vector(hidden).cpu())
    return torch.stack(vectors)


def split(domains: Sequence[str], num_search: int, num_heldout: int, seed: int) -> list[Part]:
    """A seeded part for each prompt, domain by domain; search and held-out take a third of a domain at most."""
    parts = [Part.ANCHOR] * len(domains)
    for domain, count in Counter(domains).items():
        if count < MIN_PROMPTS:
            raise PromptError(f"domain {domain!r} has {count} usable prompts, at least {MIN_PROMPTS} are needed")
        members = [i for i, name in enumerate(domains) if name == domain]
        random.Random(f"{seed} {domain}").shuffle(members)
        searching, holding = min(num_search, count // 3), min(num_heldout, count // 3)
        for i in members[:searching]:
            parts[i] = Part.SEARCH
        for i in members[searching : searching + holding]:
            parts[i] = Part.HELDOUT
    return parts

"""Stage 1: prompts -> token ids, prompt vectors, domains, and the disjoint parts that later stages use.

The vector is the engine's own `prompt_vector` over a prefill by the engine's own decoder, so that
calibration and serving see the same thing. Each domain has a folder with a record of its own, which
stays good while prompts of other domains come and go.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from offline.calibration.clustering import ONE_DOMAIN, Clustering, find_domains
from offline.loaded_model import LoadedModel
from offline.prompts import Prompt, PromptError, PromptSet
from offline.records import StageRecord, Strict, digest_of, folder_name, log, reused_or_made, write_atomically
from offline.settings import CalibrationSettings
from server.engine import Decoder, EngineConfig, TokenBatch, prompt_vector

MIN_PROMPTS = 3
"""Prompts that a domain needs: one for each `Part`."""


class Part(StrEnum):
    """The use of a prompt: to place anchors, to search masks on, or to judge and report what was found."""

    ANCHOR = "anchor"
    SEARCH = "search"
    HELDOUT = "heldout"


class CollectedPrompt(Strict):
    """A prompt as the later stages need it: its token ids and its part."""

    part: Part
    ids: list[int]


class DomainPrompts(StageRecord):
    """A domain's prompts in the order of the rows of its vector file."""

    name: str
    prompts: list[CollectedPrompt]
    vector_file: str

    def chosen(self, *parts: Part) -> list[int]:
        """Indices of the prompts of these parts."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.part in parts]

    def ids(self, part: Part) -> list[list[int]]:
        return [self.prompts[i].ids for i in self.chosen(part)]


class ClusterRecord(StageRecord):
    """The clusters of unlabelled prompts; the vectors are in the order of the prompts."""

    clustering: Clustering
    vector_file: str


@dataclass(frozen=True)
class Collection:
    """The domains with their vectors [prompts, hidden_size], fp32; `clusters` where the domains were found."""

    domains: dict[str, DomainPrompts]
    vectors: dict[str, Tensor]
    clusters: ClusterRecord | None = None

    @property
    def num_prompts(self) -> int:
        return sum(len(domain.prompts) for domain in self.domains.values())

    def part(self, name: str, *parts: Part) -> Tensor:
        """The vectors of a domain's prompts of these parts."""
        return self.vectors[name][self.domains[name].chosen(*parts)]


@dataclass(frozen=True)
class Usable:
    """A prompt that fits the context, with its ids."""

    prompt: Prompt
    ids: list[int]


def collect(loaded: LoadedModel, prompt_set: PromptSet, settings: CalibrationSettings, work: Path) -> Collection:
    """The domains of the prompts with their vectors; unlabelled prompts are clustered first.

    Raises `PromptError` where a domain has fewer than `MIN_PROMPTS` usable prompts.
    """
    usable = usable_prompts(loaded, prompt_set, settings)
    clusters, names = None, [each.prompt.domain or "" for each in usable]
    if not prompt_set.is_labelled:
        check_sizes({ONE_DOMAIN: len(usable)})
        clusters = cluster(loaded, usable, settings, work)
        names = clusters.clustering.names
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    check_sizes(
        {prompt.domain: 0 for prompt in prompt_set.prompts if prompt.domain} | {n: len(r) for n, r in rows.items()}
    )
    known = load_file(work / clusters.vector_file)["vectors"] if clusters else None
    domains, vectors = {}, {}
    for name, members in rows.items():
        folder = work / folder_name(name)
        group = [usable[row] for row in members]
        domains[name] = collect_domain(loaded, name, group, settings, folder, None if known is None else known[members])
        vectors[name] = load_file(folder / domains[name].vector_file)["vectors"]
    return Collection(domains, vectors, clusters)


def usable_prompts(loaded: LoadedModel, prompt_set: PromptSet, settings: CalibrationSettings) -> list[Usable]:
    """A sample of the prompts, without those that leave no room in the context for a continuation."""
    prompts = prompt_set.limited(settings.prompts_per_domain, settings.seed).prompts
    encoded = [Usable(prompt, loaded.encode(prompt)) for prompt in tqdm(prompts, "token ids", delay=2, leave=False)]
    limit = loaded.model.config.max_length - settings.continuation_tokens
    usable = [each for each in encoded if len(each.ids) <= limit]
    if prompt_set.num_duplicates:
        log.info("%d repeated prompts dropped", prompt_set.num_duplicates)
    if len(usable) < len(encoded):
        log.info("%d prompts of more than %d tokens dropped", len(encoded) - len(usable), limit)
    if not usable:
        raise PromptError(f"no prompt is within {limit} tokens, the model's context less the continuation")
    return usable


def check_sizes(counts: dict[str, int]) -> None:
    """Before anything is written, so that a domain too small leaves earlier work as it was."""
    for name, count in counts.items():
        if count < MIN_PROMPTS:
            raise PromptError(f"domain {name!r} has {count} usable prompts, at least {MIN_PROMPTS} are needed")


def cluster(loaded: LoadedModel, usable: Sequence[Usable], settings: CalibrationSettings, work: Path) -> ClusterRecord:
    """The clusters of all prompts, which become domains."""
    digest = digest_of(loaded.digest, [each.prompt.key for each in usable], settings.seed)

    def make() -> ClusterRecord:
        vectors = prompt_vectors(loaded.model, [each.ids for each in usable])
        found = find_domains(vectors.numpy(), [each.prompt.text for each in usable], settings.seed)
        return ClusterRecord(digest=digest, clustering=found, vector_file=save_vectors(vectors, digest, work))

    record = reused_or_made(work / "clusters.json", ClusterRecord, digest, make)
    log.info("domains found: %s", ", ".join(dict.fromkeys(record.clustering.names)))
    return record


def collect_domain(
    loaded: LoadedModel,
    name: str,
    group: Sequence[Usable],
    settings: CalibrationSettings,
    folder: Path,
    vectors: Tensor | None,
) -> DomainPrompts:
    """One domain's record; `vectors` [prompts, hidden_size] where they are known already."""
    chosen = (settings.search_prompts, settings.heldout_prompts, settings.seed)
    digest = digest_of(loaded.digest, name, [each.prompt.key for each in group], chosen)

    def make() -> DomainPrompts:
        found = prompt_vectors(loaded.model, [each.ids for each in group]) if vectors is None else vectors
        parts = split(len(group), settings.search_prompts, settings.heldout_prompts, f"{settings.seed} {name}")
        prompts = [CollectedPrompt(part=part, ids=each.ids) for each, part in zip(group, parts, strict=True)]
        return DomainPrompts(digest=digest, name=name, prompts=prompts, vector_file=save_vectors(found, digest, folder))

    return reused_or_made(folder / "collect.json", DomainPrompts, digest, make)


def save_vectors(vectors: Tensor, digest: str, folder: Path) -> str:
    """Writes vectors to a file named by digest: an interrupted run never leaves those of another record."""
    name = f"vectors-{digest[:12]}.safetensors"
    write_atomically(folder / name, save({"vectors": vectors.contiguous()}))
    return name


@torch.inference_mode()
def prompt_vectors(model: Decoder, prompts: Sequence[list[int]]) -> Tensor:
    """One vector per prompt [prompts, hidden_size], fp32, by a full pass in the engine's chunks."""
    cache, chunk = model.new_cache(1, max(map(len, prompts))), EngineConfig().prefill_chunk
    vectors = []
    for ids in tqdm(prompts, "prompt vectors", delay=2, leave=False):
        starts = range(0, len(ids), chunk)
        batches = [TokenBatch([(0, at, ids[at : at + chunk])], cache) for at in starts]
        hidden = torch.cat([model.forward(batch, cache) for batch in batches])
        vectors.append(prompt_vector(hidden).cpu())
    return torch.stack(vectors)


def split(count: int, num_search: int, num_heldout: int, seed: str) -> list[Part]:
    """A seeded part for each of a domain's prompts; search and held-out take a third at most."""
    parts = [Part.ANCHOR] * count
    members = random.Random(seed).sample(range(count), count)
    searching, holding = min(num_search, count // 3), min(num_heldout, count // 3)
    for i in members[:searching]:
        parts[i] = Part.SEARCH
    for i in members[searching : searching + holding]:
        parts[i] = Part.HELDOUT
    return parts

"""Stage 3, between tokens and search: a patch in place of all layers for each domain, and one over all of them.

It is fitted on the model's answers to anchor prompts, never on those that drafts are searched with or judged by. One
prompt of eight is kept apart, which says how many gradient steps help, and whether a domain's begin at the mixed patch:
that was fitted on more text, and text is what a patch lacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from offline.calibration.patching.fit import Judge, Linear, factored, improved, least_squares
from offline.calibration.patching.places import places_of
from offline.calibration.scoring.continuations import Text
from offline.calibration.vocabulary import TokenCounts
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, digest_of, folder_name, log, reused_or_made, write_atomically
from offline.settings import CalibrationSettings
from server.engine import Patch

START = 0
"""The first layer that a patch stands for: after half of the layers it would agree hardly more often, see LOG.md."""
JUDGING_SHARE = 8
"""One prompt of so many is kept apart."""
HEAD_TOKENS = 2048
"""Of a domain's commonest tokens, how many gradient steps tell from each other."""
MOST_NUMBERS = 2 * 1024 * 1024
"""A patch of more numbers becomes two factors of so many: 4 MiB in bf16."""
MIXED_SHARE = 2
"""Places of the patch over all domains, in units of those of one domain."""


class FittedPatch(StageRecord):
    """A patch in a file beside this record.

    `agreements` are shares of the answers' places kept apart where its first choice is the model's own: at the start,
    which is least squares or the mixed patch, and after each epoch of gradient steps, of which the last may be one too
    many.
    """

    num_places: int
    agreements: list[float]
    is_from_mixed: bool = False
    file: str

    def patch(self, folder: Path) -> Patch:
        return Patch.of(START, load_file(folder / self.file))


@dataclass(frozen=True)
class Split:
    """Answers by their prompt: those that a patch is fitted on, and those that were kept apart to judge it.

    What is kept apart for a domain is kept apart from the mixed patch too, so that a domain's may begin at that.
    """

    rest: list[list[Text]]
    apart: list[list[Text]]

    @classmethod
    def of(cls, groups: list[list[Text]]) -> "Split":
        rest = [group for i, group in enumerate(groups) if i % JUDGING_SHARE]
        return cls(rest, groups[::JUDGING_SHARE])

    @classmethod
    def joined(cls, parts: Sequence["Split"]) -> "Split":
        return cls([g for part in parts for g in part.rest], [g for part in parts for g in part.apart])

    def thinned(self, step: int) -> "Split":
        """One of so many of each."""
        return Split(self.rest[::step], self.apart[::step])


def fit_patches(
    loaded: LoadedModel,
    counted: Mapping[str, TokenCounts],
    ranked: Mapping[str, Sequence[int]],
    settings: CalibrationSettings,
    work: Path,
) -> dict[str, FittedPatch]:
    """The patches of the domains and of `mixed`; `ranked` are their tokens, commonest first."""
    parts = {name: Split.of(grouped(each.answered)) for name, each in counted.items()}
    step = max(len(parts) // MIXED_SHARE, 1)
    parts[MIXED] = Split.joined([part.thinned(step) for part in parts.values()])
    digests = {name: each.digest for name, each in counted.items()}
    digests[MIXED] = digest_of(list(digests.values()))
    fitted: dict[str, FittedPatch] = {}
    # The mixed one first: the others may begin at it.
    for name in (MIXED, *counted):
        folder, begin = domain_folder(work, name), None
        if name != MIXED:
            mixed = fitted[MIXED].patch(domain_folder(work, MIXED))
            begin = Linear(mixed.weight, mixed.bias)
        tokens = ranked[name][:HEAD_TOKENS]
        fitted[name] = fit_patch(loaded, parts[name], tokens, digests[name], settings.seed, folder, begin)
    return {name: fitted[name] for name in (*counted, MIXED)}


def domain_folder(work: Path, name: str) -> Path:
    """The folder of a domain, or of `mixed`, whose plain name no domain can have."""
    return work / (MIXED if name == MIXED else folder_name(name))


def grouped(texts: Sequence[Text]) -> list[list[Text]]:
    """Answers to one prompt together."""
    return [list(group) for _, group in groupby(texts, lambda text: text.prompt_ids)]


def fit_patch(
    loaded: LoadedModel,
    split: Split,
    tokens: Sequence[int],
    digest: str,
    seed: int,
    folder: Path,
    begin: Linear | None,
) -> FittedPatch:
    """One patch, read from its folder where it is finished; gradient steps begin at `begin` where that agrees more."""
    digest = digest_of(digest, seed, START, HEAD_TOKENS, MOST_NUMBERS, MIXED_SHARE, JUDGING_SHARE)

    def make() -> FittedPatch:
        places, judged = (places_of(loaded.model, some, START) for some in (split.rest or split.apart, split.apart))
        judge = Judge(judged, head_rows(loaded, tokens))
        start = least_squares(places)
        is_from_mixed = begin is not None and judge.agreement(begin) > judge.agreement(start)
        best, agreements = improved(begin if begin and is_from_mixed else start, places, judge, seed)
        patch = Patch(START, factored(best.weight, places.inputs, MOST_NUMBERS), best.bias)
        name = f"patch-{digest[:12]}.safetensors"
        write_atomically(folder / name, save(patch.tensors))
        shares = " ".join(f"{share:.3f}" for share in agreements)
        source = "the mixed one" if is_from_mixed else "least squares"
        log.info("patch: %s, %d places, agreement from %s on %s", folder.name, places.count, source, shares)
        rounded = [round(share, 4) for share in agreements]
        return FittedPatch(
            digest=digest, num_places=places.count, agreements=rounded, is_from_mixed=is_from_mixed, file=name
        )

    return reused_or_made(folder / "patch.json", FittedPatch, digest, make)


def head_rows(loaded: LoadedModel, tokens: Sequence[int]) -> Tensor:
    """Rows [tokens, hidden_size] of the model's head, in fp32 and on the model's device."""
    return loaded.checkpoint.dense("lm_head.weight")[torch.tensor(tokens)].float()

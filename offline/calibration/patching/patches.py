"""Stage 3, between tokens and search: a patch in place of all layers for each domain, and one over all of them.

It is fitted on the model's answers to anchor prompts, never on those that drafts are searched with or judged by. One
prompt of eight is kept apart, which says how many gradient steps help.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from offline.calibration.patching.fit import Judge, factored, improved, least_squares
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

    `agreements` are shares of the answers' places kept apart where its first choice is the model's own: after least
    squares, and after each epoch of gradient steps, of which the last may be one too many.
    """

    num_places: int
    agreements: list[float]
    file: str

    def patch(self, folder: Path) -> Patch:
        return Patch.of(START, load_file(folder / self.file))


def fit_patches(
    loaded: LoadedModel,
    counted: Mapping[str, TokenCounts],
    ranked: Mapping[str, Sequence[int]],
    settings: CalibrationSettings,
    work: Path,
) -> dict[str, FittedPatch]:
    """The patches of the domains and of `mixed`; `ranked` are their tokens, commonest first."""
    texts = {name: grouped(each.answered) for name, each in counted.items()}
    step = max(len(texts) // MIXED_SHARE, 1)
    texts[MIXED] = [group for groups in list(texts.values()) for group in groups[::step]]
    digests = {name: each.digest for name, each in counted.items()}
    digests[MIXED] = digest_of(list(digests.values()))
    fitted = {}
    for name, groups in texts.items():
        folder = domain_folder(work, name)
        fitted[name] = fit_patch(loaded, groups, ranked[name][:HEAD_TOKENS], digests[name], settings.seed, folder)
    return fitted


def domain_folder(work: Path, name: str) -> Path:
    """The folder of a domain, or of `mixed`, whose plain name no domain can have."""
    return work / (MIXED if name == MIXED else folder_name(name))


def grouped(texts: Sequence[Text]) -> list[list[Text]]:
    """Answers to one prompt together."""
    return [list(group) for _, group in groupby(texts, lambda text: text.prompt_ids)]


def fit_patch(
    loaded: LoadedModel,
    groups: Sequence[list[Text]],
    tokens: Sequence[int],
    digest: str,
    seed: int,
    folder: Path,
) -> FittedPatch:
    """One patch, read from its folder where it is finished."""
    digest = digest_of(digest, seed, START, HEAD_TOKENS, MOST_NUMBERS, MIXED_SHARE)

    def make() -> FittedPatch:
        apart = groups[::JUDGING_SHARE]
        rest = [group for i, group in enumerate(groups) if i % JUDGING_SHARE] or apart
        places, judged = (places_of(loaded.model, some, START) for some in (rest, apart))
        judge = Judge(judged, head_rows(loaded, tokens))
        best, agreements = improved(least_squares(places), places, judge, seed)
        patch = Patch(START, factored(best.weight, places.inputs, MOST_NUMBERS), best.bias)
        name = f"patch-{digest[:12]}.safetensors"
        write_atomically(folder / name, save(patch.tensors))
        shares = " ".join(f"{share:.3f}" for share in agreements)
        log.info("patch: %s, %d places, agreement %s", folder.name, places.count, shares)
        rounded = [round(share, 4) for share in agreements]
        return FittedPatch(digest=digest, num_places=places.count, agreements=rounded, file=name)

    return reused_or_made(folder / "patch.json", FittedPatch, digest, make)


def head_rows(loaded: LoadedModel, tokens: Sequence[int]) -> Tensor:
    """Rows [tokens, hidden_size] of the model's head, in fp32 and on the model's device."""
    return loaded.checkpoint.dense("lm_head.weight")[torch.tensor(tokens)].float()

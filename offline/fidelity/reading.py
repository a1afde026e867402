"""Variants read the same texts: their first choice at each place, and how well they foresee the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from offline.calibration.scoring.continuations import Text
from offline.fidelity.models import Variant


@dataclass(frozen=True)
class Reading:
    """Of all places, the tokens [places] that the variant would have written.

    `loss` is the mean negative log-likelihood, in nats, of the prompts' tokens, each after those before it. Answers
    are the reference's own, so that their loss would favour what is like it.
    """

    choices: Tensor
    loss: float

    def agreement(self, other: "Reading") -> float:
        """Share of places with the same choice."""
        return (self.choices == other.choices).double().mean().item()


@torch.inference_mode()
def read(variant: Variant, texts: Sequence[Text]) -> Reading:
    """One teacher-forced pass of the variant over each text."""
    choices, total = [], 0.0
    for text in tqdm(texts, variant.name, delay=2, leave=False):
        ids = text.prompt_ids + text.output_ids
        waiting = torch.tensor(text.prompt_ids[1:])
        for logits in variant.logits(ids[:-1]):
            choices.append(logits.argmax(-1).cpu())
            own, waiting = waiting[: len(logits)], waiting[len(logits) :]
            total += F.cross_entropy(logits[: len(own)], own.to(logits.device), reduction="sum").item()
    return Reading(torch.cat(choices), total / num_scored(texts))


def num_scored(texts: Sequence[Text]) -> int:
    """The tokens of prompts that follow another one."""
    return sum(len(text.prompt_ids) - 1 for text in texts)

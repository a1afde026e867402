"""What a patch is fitted on: the model's states at all places of texts, and what a draft would know there.

A draft knows the token of a place, and the state of the place before. It has to find the state of the place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offline.calibration.scoring.continuations import Text
from server.engine import Decoder, DraftModel, Row, SkipMask, TokenBatch

ANSWER_WEIGHT = 5.0
"""Places of a prompt that a place of an answer counts as much as: drafts follow answers."""


@dataclass(frozen=True)
class Places:
    """Inputs [places, 2 * hidden_size] and states [places, hidden_size] in fp32, and each place's weight [places].

    `is_answer` [places] says where the state is one that a token of an answer is chosen from.
    """

    inputs: Tensor
    states: Tensor
    is_answer: Tensor

    @property
    def weights(self) -> Tensor:
        return 1 + (ANSWER_WEIGHT - 1) * self.is_answer.float()

    @property
    def count(self) -> int:
        return len(self.states)

    @classmethod
    def of(cls, reached: Tensor, states: Tensor, is_answer: bool) -> "Places":
        """Places that follow each other, from what reaches the patch there; `states` begin with the one before."""
        are_answers = torch.full((len(reached),), is_answer, device=states.device)
        return cls(torch.cat((reached, states[:-1]), 1), states[1:], are_answers)

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        columns = zip(*((part.inputs, part.states, part.is_answer) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


@torch.inference_mode()
def places_of(model: Decoder, groups: Sequence[Sequence[Text]], start: int) -> Places:
    """The places of texts for a patch from layer `start` on.

    The texts of a group have one prompt and share its pass; the places of the prompt itself are taken once.
    """
    longest = max(len(text.prompt_ids) + len(text.output_ids) for group in groups for text in group)
    cache = model.new_cache(max(map(len, groups)), longest)
    layers = frozenset(range(start, model.config.num_layers))
    below = DraftModel(SkipMask(layers, layers))
    parts = []
    for group in groups:
        prompt, outputs = group[0].prompt_ids, [text.output_ids for text in group]
        before = TokenBatch([(0, 0, prompt)], cache)
        reached, states = (model.forward(before, cache, draft).float() for draft in (below, DraftModel()))
        parts.append(Places.of(reached[1:], states, is_answer=False))
        for slot in range(1, len(outputs)):
            cache.copy(0, slot, len(prompt))
        rows: list[Row] = [(slot, len(prompt), ids) for slot, ids in enumerate(outputs) if ids]
        if not rows:
            continue
        after = TokenBatch(rows, cache)
        lengths = [len(ids) for _, _, ids in rows]
        reached, found = (model.forward(after, cache, draft).float() for draft in (below, DraftModel()))
        for own, own_reached in zip(found.split(lengths), reached.split(lengths), strict=True):
            parts.append(Places.of(own_reached, torch.cat((states[-1:], own)), is_answer=True))
    return Places.joined(parts)

"""A patch for places: least squares towards the model's states, then gradient steps towards its choices.

Least squares has a closed form, but a state that is nearly right may choose the wrong token, and one that is far
off the right one. So the second part follows the cross-entropy of the model's own distribution over a vocabulary,
as long as places that were kept apart gain by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from offline.calibration.patching.places import Places

RIDGE = 1e-2
"""Penalty on a weight, in units of what an input of variance one brings."""
RATE = 1e-4
BATCH = 256
MOST_EPOCHS = 8
PART = 4096
"""Places that least squares take in at once."""


@dataclass(frozen=True)
class Linear:
    """A patch's weight [hidden_size, 2 * hidden_size] and bias [hidden_size]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T + self.bias


@dataclass(frozen=True)
class Judge:
    """Places that were kept apart, and the head [tokens, hidden_size] that states are judged by."""

    places: Places
    head: Tensor

    @cached_property
    def inputs(self) -> Tensor:
        """Those of the answers' places."""
        return self.places.inputs[self.places.is_answer]

    @cached_property
    def own(self) -> Tensor:
        """The model's own first choices there."""
        return (self.places.states[self.places.is_answer] @ self.head.T).argmax(-1)

    def agreement(self, patch: Linear) -> float:
        """Share of the answers' places where the patch's first choice is the model's own."""
        return float(((patch(self.inputs) @ self.head.T).argmax(-1) == self.own).float().mean())


def least_squares(places: Places) -> Linear:
    """Weighted ridge regression from inputs to states."""
    weights = places.weights / places.weights.sum()
    mean, target_mean = weights @ places.inputs, weights @ places.states
    # A part of the places at a time: copies of all would take several times their memory.
    columns = list(zip(*(part.split(PART) for part in (places.inputs, places.states, weights)), strict=True))
    variance = sum(share @ (inputs - mean).square() for inputs, _, share in columns)
    scale = torch.as_tensor(variance).sqrt().clamp(min=1e-6)
    squares = RIDGE * torch.eye(len(mean), device=mean.device)
    products = mean.new_zeros(len(mean), len(target_mean))
    for inputs, states, share in columns:
        scaled = (inputs - mean) / scale
        squares += scaled.T @ (scaled * share[:, None])
        products += scaled.T @ ((states - target_mean) * share[:, None])
    weight = (torch.linalg.solve(squares, products) / scale[:, None]).T
    return Linear(weight, target_mean - weight @ mean)


def improved(patch: Linear, places: Places, judge: Judge, seed: int) -> tuple[Linear, list[float]]:
    """The patch after the epochs that help, and the agreement before the first and after each of them."""
    agreements, best = [judge.agreement(patch)], patch
    for candidate in epochs(patch, places, judge.head, seed):
        agreements.append(judge.agreement(candidate))
        if agreements[-1] <= max(agreements[:-1]):
            break
        best = candidate
    return best, agreements


def epochs(patch: Linear, places: Places, head: Tensor, seed: int) -> Iterator[Linear]:
    """The patch after each of at most `MOST_EPOCHS` rounds of Adam over all places."""
    order = torch.Generator().manual_seed(seed)
    moving, weights = Linear(*(part.clone().requires_grad_() for part in (patch.weight, patch.bias))), places.weights
    optimizer = torch.optim.Adam([moving.weight, moving.bias], lr=RATE)
    for _ in range(MOST_EPOCHS):
        for batch in torch.randperm(places.count, generator=order).split(BATCH):
            own = torch.softmax(places.states[batch] @ head.T, -1)
            drafted = torch.log_softmax(moving(places.inputs[batch]) @ head.T, -1)
            losses = -(own * drafted).sum(-1)
            loss = (losses * weights[batch]).sum() / weights[batch].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield Linear(moving.weight.detach().clone(), moving.bias.detach().clone())


def factored(weight: Tensor, inputs: Tensor, most_numbers: int) -> tuple[Tensor, ...]:
    """The weight itself where it has few numbers, else two factors of it with so many.

    They are the best for these inputs [places, columns]: singular values of the weight times the inputs' scale.
    """
    if weight.numel() <= most_numbers:
        return (weight,)
    rank = max(most_numbers // sum(weight.shape), 1)
    scale = inputs.square().mean(0).sqrt().clamp(min=1e-6)
    left, values, right = torch.linalg.svd(weight * scale, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank] / scale

"""The plane in which anchors are shown: the one that separates them best, and where a prompt lies in it."""

import torch
from torch import Tensor

Point = tuple[float, float]

NEGLIGIBLE = 1e-6
"""Share of the widest spread under which a direction is rounding error: two anchors make a line, not a plane."""


class Plane:
    """Principal components of the anchors' directions, which are what the router compares.

    Of an anchor or a prompt the direction from the anchors' centre counts, not the length. The anchors reach from -1 to
    1 along the longer side, and both sides have one scale; a prompt may lie outside.
    """

    def __init__(self, anchors: Tensor, centre: Tensor) -> None:
        """Of anchors [anchors, hidden_size] around their centre [hidden_size]."""
        self.centre = centre.double().cpu()
        directions = self.directions(anchors)
        self.mean = directions.mean(0)
        spread = directions - self.mean
        _, sizes, found = torch.linalg.svd(spread, full_matrices=False)
        axes = torch.zeros(2, spread.shape[1], dtype=torch.float64)
        known = found[:2] * (sizes[:2] > NEGLIGIBLE * sizes.max().clamp(min=NEGLIGIBLE))[:, None]
        # A component may point either way; the way is taken along which its largest number is positive.
        largest = known.gather(1, known.abs().argmax(1, keepdim=True))
        axes[: len(known)] = torch.where(largest < 0, -known, known)
        reach = float((spread @ axes.T).abs().max())
        self.axes = axes / reach if reach else axes

    def directions(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize(vectors.double().cpu() - self.centre, dim=-1)

    def place(self, vectors: Tensor) -> list[Point]:
        """The points of vectors [vectors, hidden_size]."""
        points = (self.directions(vectors) - self.mean) @ self.axes.T
        return [(x, y) for x, y in points.tolist()]

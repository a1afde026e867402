"""Masks that calibration has found: the one of the prompt's domain, or the one that suits all domains."""

from typing import Self

from server.engine.masks.base import MaskParts, MaskSource, register
from server.engine.masks.router import Router
from server.engine.sequence import Sequence
from server.engine.types import Route


@register
class NearestAnchor(MaskSource):
    """The mask of the domain whose anchor is nearest to the prompt's vector; KNN-SSD, arXiv 2505.16162."""

    name = "knn"
    summary = "with the mask of the domain that the prompt is nearest to"
    published = "1.3-1.6"

    def __init__(self, router: Router) -> None:
        self.router = router

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        assert parts.router is not None
        return cls(parts.router)

    def first_route(self, sequence: Sequence) -> Route:
        assert sequence.prompt_vector is not None
        return self.router.route(sequence.prompt_vector)


@register
class FixedMask(MaskSource):
    """The mask of the artifact's first domain for every prompt; Self-SD, arXiv 2309.08168, searches one on one task.

    Published: up to 1.99 over plain decoding, on the task that it was searched on.
    """

    name = "fixed"
    summary = "with the mask of the first domain for every prompt"
    published = "to 1.99"

    def __init__(self, route: Route) -> None:
        self.route = route

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        assert parts.router is not None
        return cls(parts.router.all[0])

    def first_route(self, sequence: Sequence) -> Route:
        return self.route


@register
class MixedMask(MaskSource):
    """The artifact's mixed mask for every prompt: what routing has to beat."""

    name = "mixed"
    summary = "with the mask that was searched over all domains"

    def __init__(self, route: Route) -> None:
        self.route = route

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        assert parts.router is not None
        return cls(parts.router.mixed)

    def first_route(self, sequence: Sequence) -> Route:
        return self.route

"""The prompt's hidden vector selects the draft: nearest anchor by centred cosine, through HNSW."""

import itertools
from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from typing import Any

import hnswlib
import numpy as np
import torch
from torch import Tensor

from server.engine.masks.artifact import RoutingArtifact
from server.engine.masks.manifest import DomainRecord
from server.engine.masks.plane import Plane, Point
from server.engine.types import OTHER_DOMAIN, DraftModel, Place, Route

NUM_NEAREST = 5
"""Anchors that a prompt's place names."""


def prompt_vector(hidden: Tensor) -> Tensor:
    """Mean over positions of the hidden states [positions, hidden_size] after the final norm, in fp32."""
    return hidden.float().mean(0)


class Router:
    """Maps a prompt vector to a `Route`; below its domain's threshold to the mixed draft.

    The anchors' mean is subtracted before the cosine: raw hidden states share a large common
    direction, which would hide the distance between domains.
    """

    def __init__(
        self, artifact: RoutingArtifact, max_draft: int | None = None, confidence: float | None = None
    ) -> None:
        """`max_draft` and `confidence`, where given, go before those of all the artifact's drafts."""
        manifest = artifact.manifest
        given = {"max_draft": max_draft, "confidence": confidence}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

        def draft_of(record: DomainRecord) -> DraftModel:
            return replace(artifact.draft_model(record), **changes)

        own = [domain.similarity_threshold for domain in manifest.domains]
        self.thresholds = [manifest.similarity_threshold if each is None else each for each in own]
        """By domain."""
        self.anchors = artifact.anchors.float()
        self.centre = artifact.centre.float()
        self.routes = [Route(domain.name, draft_of(domain)) for domain in manifest.domains]
        self.mixed = Route(OTHER_DOMAIN, draft_of(manifest.mixed))
        self.anchor_domains = manifest.anchor_domains
        self.index = hnswlib.Index(space="cosine", dim=manifest.hidden_size)
        self.index.init_index(max_elements=len(self.anchor_domains), random_seed=0)
        # As wide as the index: the search is exact, and still takes microseconds.
        self.index.set_ef(len(self.anchor_domains))
        self.index.add_items((self.anchors - self.centre).numpy(), np.arange(len(self.anchor_domains)))

    def route(self, vector: Tensor) -> Route:
        """The nearest anchor's domain, draft model and similarity for a prompt vector [hidden_size]."""
        labels, distances = self.index.knn_query((vector.cpu() - self.centre).numpy(), k=1)
        similarity = 1.0 - float(distances[0, 0])
        nearest = self.anchor_domains[int(labels[0, 0])]
        chosen = self.mixed if similarity < self.thresholds[nearest] else self.routes[nearest]
        return Route(chosen.domain, chosen.draft, similarity)

    @cached_property
    def plane(self) -> Plane:
        return Plane(self.anchors, self.centre)

    @cached_property
    def map(self) -> dict[str, list[Point]]:
        """The anchors of each domain in the plane."""
        points: dict[str, list[Point]] = {domain: [] for domain in self.domains}
        for domain, point in zip(self.anchor_domains, self.plane.place(self.anchors), strict=True):
            points[self.domains[domain]].append(point)
        return points

    @cached_property
    def anchor_numbers(self) -> list[int]:
        """The number of each anchor among those of its domain."""
        seen: defaultdict[int, itertools.count[int]] = defaultdict(itertools.count)
        return [next(seen[domain]) for domain in self.anchor_domains]

    def place(self, vector: Tensor) -> Place:
        """Where a prompt vector [hidden_size] lies among the anchors."""
        count = min(NUM_NEAREST, len(self.anchor_domains))
        labels, _ = self.index.knn_query((vector.cpu() - self.centre).numpy(), k=count)
        nearest = tuple((self.domains[self.anchor_domains[i]], self.anchor_numbers[i]) for i in labels[0].tolist())
        (point,) = self.plane.place(vector[None])
        return Place(point, nearest)

    def threshold(self, domain: str) -> float | None:
        """The similarity under which a prompt near this domain is none of its own; None for what is no domain."""
        return dict(zip(self.domains, self.thresholds, strict=True)).get(domain)

    def named(self, domain: str) -> Route | None:
        """The route of a domain by name, or None where the artifact has no such domain."""
        return next((route for route in self.all if route.domain == domain), None)

    @property
    def all(self) -> list[Route]:
        """The route of each domain, and last the mixed one."""
        return [*self.routes, self.mixed]

    @property
    def domains(self) -> list[str]:
        return [route.domain for route in self.routes]


def similarities(vectors: Tensor, anchors: Tensor, centre: Tensor) -> Tensor:
    """Centred cosines [vectors, anchors], the quantity that `Router` thresholds."""
    normed = torch.nn.functional.normalize
    return normed(vectors.float() - centre, dim=-1) @ normed(anchors.float() - centre, dim=-1).T

"""Anchors, their centre, and the threshold."""

from pathlib import Path

import torch

from offline.anchors import cluster_centres, make_anchors
from offline.collect import CollectedPrompt, Collection, Part
from offline.settings import CalibrationSettings
from server.engine import similarities


def settings(anchors_per_domain: int) -> CalibrationSettings:
    return CalibrationSettings(model="m", prompts=[Path("p")], out=Path("out"), anchors_per_domain=anchors_per_domain)


def collection(num_prompts: int) -> Collection:
    parts = [Part.ANCHOR, Part.ANCHOR, Part.ANCHOR, Part.SEARCH, Part.HELDOUT]
    prompts = [
        CollectedPrompt(domain="ab"[i % 2], part=parts[i // 2 % len(parts)], ids=[i]) for i in range(num_prompts)
    ]
    return Collection(digest="d", prompts=prompts, vector_file="")


def test_unused_prompts_are_nearest_to_their_own_domain() -> None:
    found = collection(100)
    directions = 5 * torch.eye(8)[[i % 2 for i in range(100)]]
    vectors = 30 + directions + torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    anchors = make_anchors(found, vectors, settings(anchors_per_domain=4), "d")
    assert anchors.domains == [0] * 4 + [1] * 4
    assert anchors.routing_accuracy == 1.0
    assert torch.equal(anchors.centre, anchors.tensor.mean(0))
    unused = [i for i, p in enumerate(found.prompts) if p.part is not Part.ANCHOR]
    nearest = similarities(vectors[unused], anchors.tensor, anchors.centre).max(1).values
    # Here 1 % of 40 prompts is none of them or the lowest one.
    assert int((nearest < anchors.similarity_threshold).sum()) <= 1
    assert make_anchors(found, vectors, settings(anchors_per_domain=4), "d") == anchors


def test_few_or_equal_points_get_fewer_centres() -> None:
    points = torch.randn(7, 4).numpy()
    assert cluster_centres(points, 10, 0).shape == (2, 4)
    assert cluster_centres(points[:1], 10, 0).shape == (1, 4)
    assert cluster_centres(points[[0] * 30], 10, 0).shape == (1, 4)

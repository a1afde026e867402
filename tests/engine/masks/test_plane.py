"""The plane of the anchors: it tells them apart, prompts lie where the router sees them, and it never differs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import Router, RoutingArtifact
from server.engine.masks.plane import Plane
from tests.engine.masks.test_router import with_anchors

HIDDEN = 24


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@given(count=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_anchors_reach_from_minus_one_to_one(count: int, seed: int) -> None:
    anchors = vectors(count, seed)
    points = torch.tensor(Plane(anchors, anchors.mean(0)).place(anchors))
    assert points.shape == (count, 2) and points.isfinite().all()
    assert points.abs().max() == pytest.approx(1.0 if count > 1 else 0.0, abs=1e-9)
    assert points[:, 0].var(unbiased=False) >= points[:, 1].var(unbiased=False)


def test_the_same_anchors_have_the_same_plane_in_any_order() -> None:
    anchors = vectors(20, 0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    first = torch.tensor(Plane(anchors, anchors.mean(0)).place(anchors))
    again = torch.tensor(Plane(anchors[order], anchors.mean(0)).place(anchors))
    torch.testing.assert_close(again, first)


def test_two_anchors_make_a_line() -> None:
    """A second direction would be rounding error, and would throw prompts about."""
    plane = Plane(vectors(2, 0), torch.zeros(HIDDEN))
    assert [abs(x) for x, _ in plane.place(vectors(2, 0))] == pytest.approx([1.0, 1.0])
    assert {y for _, y in plane.place(vectors(9, 1))} == {0.0}


def test_the_plane_tells_clusters_apart() -> None:
    middles = torch.eye(HIDDEN)[:3] * 5
    anchors = torch.cat([middle + 0.1 * vectors(6, seed) for seed, middle in enumerate(middles)])
    points = torch.tensor(Plane(anchors, anchors.mean(0)).place(anchors)).view(3, 6, 2)
    within = (points - points.mean(1, keepdim=True)).norm(dim=-1).max()
    between = torch.pdist(points.mean(1)).min()
    assert between > 10 * within


def test_a_prompt_at_an_anchor_lies_on_it_and_has_it_nearest(tiny_artifact: RoutingArtifact) -> None:
    anchors, centre = vectors(11, 0), vectors(1, 1)[0]
    router = Router(with_anchors(tiny_artifact, anchors, centre))
    for i, anchor in enumerate(anchors):
        place = router.place(anchor)
        domain, number = place.nearest[0]
        assert (domain, number) == (("stories", "sql")[i % 2], i // 2)
        assert place.point == pytest.approx(router.map[domain][number])
        assert len(place.nearest) == len(set(place.nearest)) == 5


def test_nearest_are_in_the_routers_own_order(tiny_artifact: RoutingArtifact) -> None:
    router = Router(with_anchors(tiny_artifact, vectors(11, 0), torch.zeros(HIDDEN)))
    vector = vectors(1, 2)[0]
    cosines = torch.cosine_similarity(vectors(11, 0), vector[None])
    expected = [(("stories", "sql")[i % 2], i // 2) for i in cosines.argsort(descending=True).tolist()]
    assert list(router.place(vector).nearest) == expected[:5]


def test_fewer_anchors_than_five_are_all_near(tiny_artifact: RoutingArtifact) -> None:
    place = Router(tiny_artifact).place(tiny_artifact.anchors[1])
    assert place.nearest == (("sql", 0), ("stories", 0))
    assert (Router(tiny_artifact).threshold("sql"), Router(tiny_artifact).threshold("other")) == (-1.0, None)

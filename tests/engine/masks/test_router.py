"""Routing: the nearest anchor by centred cosine, and the mixed mask below the threshold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine import OTHER_DOMAIN, Router, RoutingArtifact, SkipMask, prompt_vector, similarities


def with_anchors(
    artifact: RoutingArtifact, anchors: Tensor, centre: Tensor, threshold: float = -1.0
) -> RoutingArtifact:
    """The artifact's two domains, with anchors that belong to them in turn."""
    changes = {
        "anchor_domains": [i % 2 for i in range(len(anchors))],
        "hidden_size": anchors.shape[1],
        "similarity_threshold": threshold,
    }
    return RoutingArtifact(artifact.manifest.model_copy(update=changes), anchors, centre, artifact.vocabularies)


AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_the_nearest_anchor_gives_domain_and_mask(tiny_artifact: RoutingArtifact) -> None:
    router = Router(with_anchors(tiny_artifact, AXES, torch.zeros(3)))
    route = router.route(torch.tensor([1.0, 3.0, 0.0]))
    assert (route.domain, route.draft.mask) == ("sql", SkipMask(frozenset({3}), frozenset({1, 3})))
    assert route.similarity == pytest.approx(3 / 10**0.5, abs=1e-5)
    assert router.route(torch.tensor([5.0, 0.1, 0.0])).domain == "stories"


def test_below_the_threshold_the_mixed_mask_is_taken_and_said_so(tiny_artifact: RoutingArtifact) -> None:
    router = Router(with_anchors(tiny_artifact, AXES, torch.zeros(3), threshold=0.9))
    route = router.route(torch.tensor([1.0, 1.0, 0.0]))
    assert (route.domain, route.draft.mask) == (OTHER_DOMAIN, SkipMask(frozenset({2}), frozenset({2})))
    assert route.similarity == pytest.approx(0.5**0.5, abs=1e-5)
    assert router.route(torch.tensor([1.0, 0.1, 0.0])).domain == "stories"


def test_a_domain_may_have_a_threshold_of_its_own(tiny_artifact: RoutingArtifact) -> None:
    placed = with_anchors(tiny_artifact, AXES, torch.zeros(3), threshold=0.9)
    stories, sql = placed.manifest.domains
    domains = [stories, sql.model_copy(update={"similarity_threshold": 0.5})]
    manifest = placed.manifest.model_copy(update={"domains": domains})
    router = Router(RoutingArtifact(manifest, placed.anchors, placed.centre, placed.vocabularies))
    assert router.route(torch.tensor([1.0, 1.1, 0.0])).domain == "sql"
    assert router.route(torch.tensor([1.1, 1.0, 0.0])).domain == OTHER_DOMAIN


def test_without_centring_the_answer_would_be_another(tiny_artifact: RoutingArtifact) -> None:
    """A large common direction hides the domains; what is left without it tells them apart."""
    common = torch.tensor([100.0, 100.0, 100.0])
    anchors = common + AXES * torch.tensor([[1.0], [20.0]])
    vector = common + torch.tensor([0.0, 0.5, 0.0])
    centred = Router(with_anchors(tiny_artifact, anchors, common)).route(vector)
    assert centred.domain == "sql"
    assert centred.similarity == pytest.approx(1.0, abs=1e-4)
    raw = Router(with_anchors(tiny_artifact, anchors, torch.zeros(3))).route(vector)
    assert raw.domain == "stories"


def test_routes_by_name(tiny_artifact: RoutingArtifact) -> None:
    router = Router(tiny_artifact)
    assert router.domains == ["stories", "sql"]
    named, other = router.named("sql"), router.named(OTHER_DOMAIN)
    assert named is not None and named.draft.mask == SkipMask(frozenset({3}), frozenset({1, 3}))
    assert named.similarity is None
    assert other is not None and other.draft.mask == SkipMask(frozenset({2}), frozenset({2}))
    assert router.named("poems") is None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num_anchors=st.integers(1, 100), size=st.integers(2, 64))
def test_the_index_finds_what_comparing_with_every_anchor_finds(
    tiny_artifact: RoutingArtifact, seed: int, num_anchors: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(num_anchors, size, generator=generator)
    centre, vector = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    route = Router(with_anchors(tiny_artifact, anchors, centre)).route(vector)
    cosines = similarities(vector[None], anchors, centre)[0]
    assert route.similarity == pytest.approx(float(cosines.max()), abs=1e-4)
    nearest = [("stories", "sql")[i % 2] for i in range(num_anchors) if cosines[i] > cosines.max() - 1e-4]
    assert route.domain in nearest


def test_many_anchors_are_all_found(tiny_artifact: RoutingArtifact) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, vectors = torch.randn(400, 64, generator=generator), torch.randn(300, 64, generator=generator)
    router = Router(with_anchors(tiny_artifact, anchors, torch.zeros(64)))
    found = torch.tensor([router.route(vector).similarity for vector in vectors])
    torch.testing.assert_close(found, similarities(vectors, anchors, torch.zeros(64)).amax(-1), atol=1e-4, rtol=0)


def test_a_bf16_vector_and_bf16_anchors_route(tiny_artifact: RoutingArtifact) -> None:
    hidden = torch.tensor([[0.0, 2.0, 0.0], [0.0, 4.0, 1.0]], dtype=torch.bfloat16)
    vector = prompt_vector(hidden)
    assert vector.dtype == torch.float32
    assert vector.tolist() == [0.0, 3.0, 0.5]
    assert Router(with_anchors(tiny_artifact, AXES.bfloat16(), torch.zeros(3))).route(vector).domain == "sql"

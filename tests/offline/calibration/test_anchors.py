"""Anchors, their centre, and the threshold."""

from pathlib import Path

import torch

from offline.calibration.anchors import cluster_centres, make_anchors, nearest
from offline.calibration.collect import CollectedPrompt, Collection, DomainPrompts, Part
from offline.settings import CalibrationSettings


def settings(anchors_per_domain: int) -> CalibrationSettings:
    return CalibrationSettings(model="m", prompts=[Path("p")], out=Path("out"), anchors_per_domain=anchors_per_domain)


PARTS = [Part.ANCHOR, Part.ANCHOR, Part.ANCHOR, Part.SEARCH, Part.HELDOUT]


def collection(count: int, directions: dict[str, int]) -> Collection:
    """Domains of so many prompts, each around an axis of its own."""
    domains, vectors = {}, {}
    for seed, (name, axis) in enumerate(directions.items()):
        prompts = [CollectedPrompt(part=PARTS[i % len(PARTS)], ids=[i]) for i in range(count)]
        domains[name] = DomainPrompts(digest=name, name=name, prompts=prompts, vector_file="")
        noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        vectors[name] = 30 + 9 * torch.eye(8)[axis] + noise
    return Collection(domains, vectors)


def test_heldout_prompts_are_nearest_to_their_own_domain() -> None:
    found = collection(50, {"a": 0, "b": 1})
    anchors = make_anchors(found, settings(anchors_per_domain=4), "d")
    assert anchors.domains == [0] * 4 + [1] * 4
    assert anchors.routing_accuracy == 1.0
    assert torch.equal(anchors.centre, anchors.tensor.mean(0))
    assert [sum(row) for row in anchors.confusion] == [10, 10]
    rejected = sum(row[-1] for row in anchors.confusion)
    assert anchors.false_reject_rate == rejected / 20
    assert anchors.confusion[0][1] == anchors.confusion[1][0] == 0
    assert make_anchors(found, settings(anchors_per_domain=4), "d") == anchors


def test_an_unknown_domain_passes_where_it_is_like_a_known_one() -> None:
    far = make_anchors(collection(50, {"a": 0, "b": 1, "c": 2}), settings(4), "d")
    near = make_anchors(collection(50, {"a": 0, "b": 0, "c": 0}), settings(4), "d")
    assert far.false_accept_rate is not None and near.false_accept_rate is not None
    assert far.false_accept_rate < 0.2 < 0.8 < near.false_accept_rate
    assert make_anchors(collection(50, {"a": 0}), settings(4), "d").false_accept_rate is None


def test_the_thresholds_let_the_stated_share_of_each_domain_fall() -> None:
    found = collection(500, {"a": 0, "b": 1})
    anchors = make_anchors(found, settings(4).model_copy(update={"threshold_quantile": 0.2}), "d")
    for name, threshold in zip("ab", anchors.thresholds, strict=True):
        similarity, _ = nearest(found.part(name, Part.SEARCH), anchors.tensor)
        assert 0.1 < float((similarity < threshold).float().mean()) < 0.25
    assert 0.1 < anchors.false_reject_rate < 0.25


def test_a_domain_whose_prompts_differ_has_a_lower_threshold_than_one_whose_prompts_are_alike() -> None:
    found = collection(100, {"a": 0, "b": 1})
    found.vectors["a"] = found.vectors["a"].mean(0) + (found.vectors["a"] - found.vectors["a"].mean(0)) / 9
    found.vectors["c"] = 30 + 9 * torch.eye(8)[2] + torch.randn(100, 8, generator=torch.Generator().manual_seed(9))
    found.domains["c"] = found.domains["b"].model_copy(update={"name": "c", "digest": "c"})
    strict = settings(4).model_copy(update={"threshold_quantile": 0.2})
    alike, differing, other = make_anchors(found, strict, "d").thresholds
    assert alike > differing
    assert alike > other


def test_one_odd_search_prompt_does_not_set_the_threshold_where_anchor_prompts_say_more() -> None:
    found = collection(300, {"a": 0, "b": 1})
    usual = make_anchors(found, settings(4).model_copy(update={"threshold_quantile": 0.05}), "d").thresholds
    odd = next(i for i, prompt in enumerate(found.domains["a"].prompts) if prompt.part == Part.SEARCH)
    found.vectors["a"][odd] = 30 - 9 * torch.eye(8)[0]
    after = make_anchors(found, settings(4).model_copy(update={"threshold_quantile": 0.05}), "d").thresholds
    assert abs(after[0] - usual[0]) < 0.1


def test_few_or_equal_points_get_fewer_centres() -> None:
    points = torch.randn(7, 4).numpy()
    assert cluster_centres(points, 10, 0).shape == (2, 4)
    assert cluster_centres(points[:1], 10, 0).shape == (1, 4)
    assert cluster_centres(points[[0] * 30], 10, 0).shape == (1, 4)

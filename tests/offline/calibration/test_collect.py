"""Splits, prompt vectors and the domains of unlabelled prompts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline.calibration.clustering import MIN_STABILITY, ONE_DOMAIN, Vectors, find_domains, stability
from offline.calibration.collect import Part, check_sizes, prompt_vectors, split
from offline.prompts import PromptError
from server.engine import (
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
    StopConditions,
)


@given(st.integers(3, 60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_every_domain_gets_all_parts_and_no_part_takes_too_much(
    count: int, num_search: int, num_heldout: int, seed: int
) -> None:
    parts = split(count, num_search, num_heldout, str(seed))
    assert parts == split(count, num_search, num_heldout, str(seed))
    assert len(parts) == count
    assert 1 <= parts.count(Part.SEARCH) <= num_search
    assert 1 <= parts.count(Part.HELDOUT) <= num_heldout
    assert parts.count(Part.ANCHOR) >= count / 3


def test_a_split_depends_on_the_seed() -> None:
    assert split(30, 5, 5, "0 a") != split(30, 5, 5, "1 a")


def test_a_domain_needs_three_prompts() -> None:
    check_sizes({"a": 3})
    with pytest.raises(PromptError, match="domain 'b' has 2 usable prompts, at least 3"):
        check_sizes({"a": 3, "b": 2})


def test_the_vector_is_the_one_that_the_engine_routes_by(model: Decoder) -> None:
    ids = [5 + i % 40 for i in range(70)]
    request = GenerationRequest(ids, SamplingParams(), StopConditions(1))
    sequence = Engine(model, EngineConfig(max_batch=1, prefill_chunk=32)).generate([request])[0]
    assert sequence.prompt_vector is not None
    torch.testing.assert_close(prompt_vectors(model, [ids])[0], sequence.prompt_vector.cpu())


def two_clouds() -> Vectors:
    noise = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    return noise + np.repeat(np.eye(16, dtype=np.float32)[:2] * 20, 20, axis=0)


def test_clusters_are_found_and_named_by_their_words() -> None:
    texts = ["select rows from the café table"] * 20 + ["the dragon and the princess of the table"] * 20
    found = find_domains(two_clouds(), texts, seed=0)
    names = found.names
    assert len(set(names[:20])) == len(set(names[20:])) == 1
    assert names[0] != names[20]
    assert set(names[20].split("-")) == {"dragon", "princess"}, "table is a word of both"
    assert all(name.isascii() for name in names)
    assert found.silhouette is not None and found.silhouette > 0.5
    assert found.stability == 1.0
    assert found == find_domains(two_clouds(), texts, seed=0)


def test_clusters_that_other_samples_do_not_confirm_are_unstable() -> None:
    points = np.random.default_rng(1).normal(size=(60, 16)).astype(np.float32)
    arbitrary = np.arange(60) % 4
    assert stability(points, arbitrary, 0) < MIN_STABILITY
    assert stability(two_clouds(), np.arange(40) // 20, 0) == 1.0


def test_nothing_to_separate_gives_one_domain() -> None:
    for points in (np.ones((20, 4), dtype=np.float32), np.ones((1, 4), dtype=np.float32)):
        found = find_domains(points, ["same"] * len(points), 0)
        assert set(found.names) == {ONE_DOMAIN}
        assert found.silhouette is None and found.stability is None


def test_clusters_without_words_are_numbered() -> None:
    assert set(find_domains(two_clouds(), ["1 2"] * 40, 0).names) == {"domain-1", "domain-2"}

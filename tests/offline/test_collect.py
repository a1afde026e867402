"""Splits, prompt vectors and the domains of unlabelled prompts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline.collect import Part, prompt_vectors, split
from offline.domains import ONE_DOMAIN, find_domains
from offline.prompts import PromptError
from server.engine import (
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
    StopConditions,
)


@given(st.lists(st.sampled_from("abc"), min_size=3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_every_domain_gets_all_parts_and_no_part_takes_too_much(
    extra: list[str], num_search: int, num_heldout: int, seed: int
) -> None:
    domains = [*extra, *"aaabbbccc"]
    parts = split(domains, num_search, num_heldout, seed)
    assert parts == split(domains, num_search, num_heldout, seed)
    assert len(parts) == len(domains)
    for domain in "abc":
        own = [part for part, name in zip(parts, domains, strict=True) if name == domain]
        assert 1 <= own.count(Part.SEARCH) <= num_search
        assert 1 <= own.count(Part.HELDOUT) <= num_heldout
        assert own.count(Part.ANCHOR) >= len(own) / 3


def test_a_split_depends_on_the_seed_and_needs_three_prompts() -> None:
    assert split(["a"] * 30, 5, 5, 0) != split(["a"] * 30, 5, 5, 1)
    with pytest.raises(PromptError, match="domain 'a' has 2 usable prompts, at least 3"):
        split(["a", "a"], 5, 5, 0)


def test_the_vector_is_the_one_that_the_engine_routes_by(model: Decoder) -> None:
    ids = [5 + i % 40 for i in range(70)]
    request = GenerationRequest(ids, SamplingParams(), StopConditions(1))
    sequence = Engine(model, EngineConfig(max_batch=1, prefill_chunk=32)).generate([request])[0]
    assert sequence.prompt_vector is not None
    torch.testing.assert_close(prompt_vectors(model, [ids])[0], sequence.prompt_vector.cpu())


def test_clusters_are_found_and_named_by_their_words() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    directions = np.repeat(np.eye(16, dtype=np.float32)[:2] * 20, 20, axis=0)
    texts = ["select rows from the café table"] * 20 + ["the dragon and the princess"] * 20
    names = find_domains(noise + directions, texts, seed=0)
    assert len(set(names[:20])) == len(set(names[20:])) == 1
    assert names[0] != names[20]
    assert set(names[20].split("-")) == {"dragon", "princess"}
    assert all(name.isascii() for name in names)
    assert names == find_domains(noise + directions, texts, seed=0)


def test_nothing_to_separate_gives_one_domain() -> None:
    assert set(find_domains(np.ones((20, 4), dtype=np.float32), ["same"] * 20, 0)) == {ONE_DOMAIN}
    assert find_domains(np.ones((1, 4), dtype=np.float32), ["one"], 0) == [ONE_DOMAIN]


def test_clusters_without_words_are_numbered() -> None:
    points = np.repeat(np.eye(8, dtype=np.float32)[:2], 10, axis=0)
    points += np.random.default_rng(0).normal(scale=0.01, size=points.shape).astype(np.float32)
    assert set(find_domains(points, ["1 2"] * 20, 0)) == {"domain-1", "domain-2"}

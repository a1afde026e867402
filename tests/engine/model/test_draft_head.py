"""Heads of a draft's vocabulary: the decoder's own rows bit for bit, and a tail that forgets the oldest."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine import (
    FULL_MODEL,
    Activations,
    Checkpoint,
    Decoder,
    DraftVocabulary,
    Quantization,
    load_checkpoint,
)
from server.engine.model import kernels
from server.engine.model.draft_head import DraftHead
from server.engine.model.gguf.codes import READERS
from tests.batches import greedy_chains, started_batch
from tests.gguf_files import TOKENS, wide_config, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config

SIZE = len(TOKENS)
KINDS: list[tuple[Type | None, torch.dtype, Quantization]] = [
    (None, torch.float32, "none"),
    (None, torch.bfloat16, "none"),
    (None, torch.bfloat16, "int4"),
    (None, torch.bfloat16, "int8"),
    *((kind, torch.bfloat16, "auto") for kind in READERS),
]
NO_KERNELS = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("wide"), wide_config(head_dim=64))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16))
    return Decoder(load_checkpoint(str(folder), torch.float32, CPU))


def with_bias(checkpoint: Checkpoint) -> Checkpoint:
    """The model with a bias of each token's logit."""
    bias = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    return replace(checkpoint, weights=checkpoint.weights | {"lm_head.bias": bias})


def a_vocabulary(count: int, rng: random.Random, size: int = SIZE) -> DraftVocabulary:
    return DraftVocabulary(tuple(rng.sample(range(size), count)))


def growths(head: DraftHead, rng: random.Random, size: int = SIZE) -> Iterator[None]:
    """Stops after each of some additions: few tokens, as many as the tail has, more than these, ones that it has."""
    yield
    for count in (1, 0, 7, 30, 3, 90, 5):
        head.add(rng.choices(range(size), k=count))
        yield
    head.add(head.token_ids.tolist())
    yield


def check_rows(head: DraftHead, decoder: Decoder, hidden: Tensor) -> None:
    """Its logits are the decoder's own to the last bit, and those of no other token."""
    own, found, ids = decoder.logits(hidden), head.logits(hidden), head.token_ids.long()
    assert len(set(ids.tolist())) == len(ids)
    assert torch.equal(found[:, ids], own[:, ids])
    assert int((found > float("-inf")).sum()) == len(hidden) * len(ids)


@NO_KERNELS
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "quantization"), KINDS, ids=lambda each: each.name if isinstance(each, Type) else str(each)
)
@torch.inference_mode()
def test_rows_are_those_of_the_decoders_head(
    build: str,
    kind: Type | None,
    dtype: torch.dtype,
    quantization: Quantization,
    has_bias: bool,
    folder: Path,
    tmp_path: Path,
) -> None:
    path = folder
    if kind is not None:
        path = tmp_path / "model.gguf"
        write_gguf(path, folder, kind)
    checkpoint = load_checkpoint(str(path), dtype, CPU, quantization=quantization)
    checkpoint = with_bias(checkpoint) if has_bias else checkpoint
    hidden = torch.randn(11, 256, generator=torch.Generator().manual_seed(1))
    all_activations: tuple[Activations, ...] = ("exact", "int8", "fine") if checkpoint.quantized else ("auto",)
    for activations in all_activations:
        decoder, rng = Decoder(checkpoint, activations), random.Random(5)
        for count in (0, 1, 21, 64):
            head = DraftHead(decoder, a_vocabulary(count, rng), tail=29)
            assert head.native is not None
            for _ in growths(head, rng):
                for rows in (1, 11):
                    check_rows(head, decoder, hidden[:rows])
            assert len(head.token_ids) == count + 29


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_kernels_rows_are_the_same(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch may add in another order where a matrix is smaller, so logits are close and weights are equal."""
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    checkpoint = load_checkpoint(str(folder), dtype, CPU)
    for each in (checkpoint, with_bias(checkpoint)):
        decoder, rng, hidden = Decoder(each), random.Random(5), torch.randn(3, 256).to(dtype)
        head = DraftHead(decoder, a_vocabulary(21, rng), tail=29)
        assert head.native is None
        for _ in growths(head, rng):
            ids, found = head.token_ids, head.logits(hidden)
            assert torch.equal(vars(head.rows)["weight"][: len(ids)], each.dense("lm_head.weight")[ids])
            torch.testing.assert_close(found[:, ids], decoder.logits(hidden)[:, ids])
            assert int((found > float("-inf")).sum()) == len(hidden) * len(ids)


def expected_tail(tail: list[int], fixed: set[int], added: list[int], length: int) -> list[int]:
    """Oldest first: what was not there comes last, in the order of last occurrences."""
    new = [token for i, token in enumerate(added) if token not in {*fixed, *tail, *added[i + 1 :]}]
    return [*tail, *new[-length:]][-length:] if length else []


few_ids = st.lists(st.integers(0, 40), max_size=30)


@settings(deadline=None, max_examples=60)
@given(
    fixed=st.lists(st.integers(0, 40), unique=True, max_size=20),
    length=st.integers(1, 12),
    additions=st.lists(few_ids, max_size=8),
    is_native=st.booleans(),
)
def test_the_oldest_of_the_tail_go(
    model: Decoder, native: Decoder, fixed: list[int], length: int, additions: list[list[int]], is_native: bool
) -> None:
    decoder, tail = native if is_native else model, list[int]()
    head = DraftHead(decoder, DraftVocabulary(tuple(fixed)), length)
    for added in additions:
        tail = expected_tail(tail, set(fixed), added, length)
        head.add(iter(added))
        ids = head.token_ids.tolist()
        assert ids[: len(fixed)] == fixed
        assert sorted(ids[len(fixed) :]) == sorted(tail)
        hidden = torch.ones(1, 32)
        if ids:
            torch.testing.assert_close(head.logits(hidden)[:, ids], decoder.logits(hidden)[:, ids])


def test_a_tail_has_no_more_rows_than_there_are_tokens_left(native: Decoder) -> None:
    head = DraftHead(native, DraftVocabulary(tuple(range(2, 262))))
    head.add(range(262))
    head.add([0, 1, 0])
    assert head.token_ids.tolist() == [*range(2, 262), 0, 1]
    whole = DraftHead(native, DraftVocabulary(tuple(range(262))))
    whole.add(range(262))
    assert whole.token_ids.tolist() == list(range(262))


@pytest.mark.parametrize("unknown", [-1, 262, 10**6])
def test_tokens_that_the_model_does_not_have_are_refused(model: Decoder, native: Decoder, unknown: int) -> None:
    for decoder in (model, native):
        with pytest.raises(ValueError, match=rf"the model has tokens 0 to 261, a draft's vocabulary {unknown}$"):
            DraftHead(decoder, DraftVocabulary((5, unknown, 7)))
        head = DraftHead(decoder, DraftVocabulary((5, 7)), 3)
        with pytest.raises(ValueError, match=f"a draft's vocabulary {unknown}$"):
            head.add([6, unknown])
        assert head.token_ids.tolist() == [5, 7]


def test_a_vocabulary_has_each_token_once_and_equals_only_itself() -> None:
    with pytest.raises(ValueError, match="a draft vocabulary has each token once"):
        DraftVocabulary((5, 7, 5))
    assert DraftVocabulary((5, 7)) != DraftVocabulary((5, 7))


def test_a_head_that_was_made_in_inference_mode_grows_outside(model: Decoder, native: Decoder) -> None:
    for decoder in (model, native):
        with torch.inference_mode():
            head = DraftHead(decoder, DraftVocabulary((5, 7)), 3)
        head.add([8])
        assert head.token_ids.tolist() == [5, 7, 8]


@NO_KERNELS
@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("num_threads", [1, 3, 16])
@torch.inference_mode()
def test_a_draft_chain_is_the_greedy_loop_over_the_heads_tokens(
    build: str, confidence: float, num_threads: int, tmp_path: Path
) -> None:
    """With fewer rows than threads too; probabilities are those among the rows."""
    checkpoint = load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU)
    torch.set_num_threads(num_threads)
    try:
        model = Decoder(checkpoint)
    finally:
        torch.set_num_threads(1)
    assert model.native is not None
    cache, limits = model.new_cache(3, 64), [5, 0, 2]
    starts = started_batch(model, cache)
    for count in (1, 15, 16, 40, 250):
        head = DraftHead(model, a_vocabulary(count, random.Random(count), 262), 7)
        head.add([50, 51, 52])
        expected = greedy_chains(model, FULL_MODEL, head, cache, starts, limits, confidence)
        assert model.native.draft(starts, cache, FULL_MODEL, limits, confidence, head.native) == expected

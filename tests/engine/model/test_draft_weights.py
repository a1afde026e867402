"""Copies of a model in fewer bits to draft with: when one is made, what it shares, and what it takes."""

import gc
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from server.engine import Checkpoint, CheckpointError, Decoder, DraftWeights, Quantization, TokenBatch, load_checkpoint
from server.engine.config import LANES
from server.engine.model import draft_weights, kernels
from server.engine.model.draft_weights import add_draft, added_bytes, predicted_gain
from server.engine.model.panels import Panels
from server.engine.model.quantization.rounding import Bits, RoundedWeight
from server.engine.model.timing import interleaved_quartiles
from tests.gguf_files import wide_config, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config

pytestmark = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")

PACKED = [Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q2_K]
LARGER = [Type.Q8_0, Type.IQ4_XS, Type.F32]
"""Of these IQ4_XS has 4 bits in its file, and 8 in memory."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16))
    return load_checkpoint(str(folder), torch.float32, CPU)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("wide"), wide_config(head_dim=64))


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """The gain that is predicted in place of a measured one; without one, none may be asked for."""
    said: dict[str, float] = {}
    monkeypatch.setattr(draft_weights, "predicted_gain", lambda *_: said["gain"])
    yield said


def with_draft(checkpoint: Checkpoint, choice: DraftWeights) -> Decoder:
    model = Decoder(checkpoint)
    add_draft(model, checkpoint, choice)
    return model


def a_file(folder: Path, path: Path, kind: Type, quantization: Quantization = "auto") -> Checkpoint:
    write_gguf(path, folder, kind)
    return load_checkpoint(str(path), torch.bfloat16, CPU, quantization=quantization)


def test_without_a_choice_the_model_drafts_itself(checkpoint: Checkpoint, predicted: dict[str, float]) -> None:
    model = with_draft(checkpoint, "none")
    assert model.low_bit is None
    assert model.drafting(is_low_bit=False) is model
    with pytest.raises(ValueError, match="needs a copy"):
        model.drafting(is_low_bit=True)


@pytest.mark.parametrize("choice", ["int4", "int8"])
def test_a_copy_has_the_bits_that_are_asked_for(checkpoint: Checkpoint, choice: DraftWeights) -> None:
    model = with_draft(checkpoint, choice)
    assert model.low_bit is model.drafting(is_low_bit=True) is not model
    assert model.low_bit is not None
    assert model.low_bit.precision == f"{choice} weights, 8-bit activations, float32 cache"
    assert model.precision == "float32"
    assert not checkpoint.quantized


@pytest.mark.parametrize(("choice", "bits"), [("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("is_tied", [False, True])
@torch.inference_mode()
def test_a_copy_is_the_model_with_every_matrix_rounded(
    choice: DraftWeights, bits: Bits, is_tied: bool, tmp_path: Path
) -> None:
    """Its embeddings stay the model's; its head is rounded, also where it is the embeddings."""
    config = tiny_config(head_dim=16, tie_word_embeddings=is_tied, attention_bias=True)
    checkpoint = load_checkpoint(str(save_random_model(tmp_path, config)), torch.float32, CPU)
    copy = with_draft(checkpoint, choice).drafting(is_low_bit=True)
    weights: dict[str, Tensor] = {}
    for name, weight in checkpoint.weights.items():
        is_rounded = weight.ndim == 2 and name != "model.embed_tokens.weight"
        weights[name] = RoundedWeight(weight, bits).dense() if is_rounded else weight
    exact = Decoder(replace(checkpoint, weights=weights))
    states = []
    for decoder in (copy, exact):
        cache = decoder.new_cache(1, 32)
        states.append(decoder.logits(decoder.forward(TokenBatch([(0, 0, list(range(7, 27)))], cache), cache)))
    difference = (states[0] - states[1]).square().mean().sqrt()
    assert 0 < difference < 0.05 * states[1].square().mean().sqrt()


@pytest.mark.parametrize("choice", ["int4", "int8"])
def test_model_and_copy_share_threads_and_embeddings(checkpoint: Checkpoint, choice: DraftWeights) -> None:
    model = with_draft(checkpoint, choice)
    assert model.native and model.low_bit and model.low_bit.native
    assert model.low_bit.native.team is model.native.team
    assert model.low_bit.native.embeddings is model.native.embeddings
    ours, its = model.native.memory, model.low_bit.native.memory
    assert model.native.embeddings.weights.data_ptr() in ours.keys() & its.keys()


@pytest.mark.parametrize(("choice", "bits"), [("int4", 4 + 2 * 16 / 32), ("int8", 8 + 16 / 32)])
def test_a_copy_takes_what_the_log_says(
    checkpoint: Checkpoint, choice: DraftWeights, bits: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Codes and scales of all matrices but the embeddings, outputs padded to whole panels."""
    with caplog.at_level(logging.INFO, "server"):
        model = with_draft(checkpoint, choice)
    assert model.low_bit and model.low_bit.native
    shapes = [*checkpoint.config.layer_shapes.values()] * checkpoint.config.num_layers
    shapes.append((checkpoint.config.vocabulary_size, checkpoint.config.hidden_size))
    weights = sum(-(-shape[0] // LANES) * LANES * shape[1] for shape in shapes if len(shape) == 2)
    assert added_bytes(model, model.low_bit) == weights * bits / 8
    assert model.low_bit.native.weight_bits == pytest.approx(bits, rel=0.02)
    (message,) = caplog.messages
    assert re.fullmatch(rf"draft weights: {choice}, 0 MB, predicted speed \d+\.\d\d of plain", message)


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_auto_makes_no_copy_of_what_has_few_bits_already(
    kind: Type, wide_folder: Path, tmp_path: Path, predicted: dict[str, float]
) -> None:
    """Nothing is timed for it either."""
    assert with_draft(a_file(wide_folder, tmp_path / "model.gguf", kind), "auto").low_bit is None
    assert with_draft(a_file(wide_folder, tmp_path / "other.gguf", Type.F32, "int4"), "auto").low_bit is None


@pytest.mark.parametrize("kind", LARGER, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("gain", "is_kept"), [(1.2, True), (1.05, False)])
def test_auto_keeps_a_copy_that_promises_to_pay(
    kind: Type,
    gain: float,
    is_kept: bool,
    wide_folder: Path,
    tmp_path: Path,
    predicted: dict[str, float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    predicted["gain"] = gain
    checkpoint = a_file(wide_folder, tmp_path / "model.gguf", kind)
    with caplog.at_level(logging.INFO, "server"):
        model = with_draft(checkpoint, "auto")
    assert (model.low_bit is not None) == is_kept
    (message,) = caplog.messages
    said = "draft weights: int4" if is_kept else "no draft weights: a copy in int4 would not pay"
    assert message.startswith(said) and f"predicted speed {gain:.2f} of plain" in message


@pytest.mark.parametrize("choice", ["int4", "int8"])
def test_a_copy_that_is_asked_for_is_made_of_any_weights(
    choice: DraftWeights, wide_folder: Path, tmp_path: Path
) -> None:
    model = with_draft(a_file(wide_folder, tmp_path / "model.gguf", Type.Q4_1), choice)
    assert model.low_bit is not None
    assert model.low_bit.precision == f"{choice} weights, 8-bit activations, bfloat16 cache"
    assert model.precision == "Q4_1 weights, fine activations, bfloat16 cache"


def test_a_copy_without_kernels_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    choices: tuple[DraftWeights, ...] = ("int4", "int8")
    for choice in choices:
        with pytest.raises(CheckpointError, match=f"draft weights in {choice} need the CPU kernels") as caught:
            with_draft(checkpoint, choice)
        assert "\n" not in str(caught.value)
    nothing: tuple[DraftWeights, ...] = ("none", "auto")
    assert [with_draft(checkpoint, choice).low_bit for choice in nothing] == [None, None]


def test_a_gain_is_predicted_from_passes_of_both(checkpoint: Checkpoint) -> None:
    model = with_draft(checkpoint, "int4")
    assert 0 < predicted_gain(model, model.drafting(is_low_bit=True)) < 10


def test_passes_are_timed_in_turn() -> None:
    calls: list[str] = []
    seconds = interleaved_quartiles([lambda: calls.append("a"), lambda: calls.append("b")], range(3))
    assert calls == ["a", "b"] * (len(calls) // 2)
    assert len(seconds) == 2


def test_threads_and_weights_end_with_the_model(checkpoint: Checkpoint) -> None:
    """Without a search for circles: a model that is dropped gives its memory back at once."""

    def running() -> set[str]:
        return {task.name for task in Path("/proc/self/task").iterdir()}

    before = torch.get_num_threads()
    gc.disable()
    try:
        others = running()
        torch.set_num_threads(3)
        model = Decoder(checkpoint)
        torch.set_num_threads(1)
        add_draft(model, checkpoint, "int4")
        own = running() - others
        assert len(own) == 2
        del model
        assert not own & running()
    finally:
        gc.enable()
        torch.set_num_threads(before)


def test_a_copy_outlives_the_decoder_that_lent_it_threads(checkpoint: Checkpoint) -> None:
    model = with_draft(checkpoint, "int8")
    copy, cache = model.drafting(is_low_bit=True), model.new_cache(1, 16)
    expected = copy.greedy(TokenBatch([(0, 0, [5, 6, 7])], cache), cache).tokens
    del model
    assert copy.greedy(TokenBatch([(0, 0, [5, 6, 7])], cache), cache).tokens == expected
    assert copy.native and isinstance(copy.native.embeddings, Panels)

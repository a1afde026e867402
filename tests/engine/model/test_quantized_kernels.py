"""Products with weights of few bits: exact to the weights' values, and to the rounding of activations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import dequantize
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2Config

from server.engine import Activations, Decoder, Quantization, TokenBatch, load_checkpoint
from server.engine.model import kernels
from server.engine.model.gguf.codes import READERS, codes_of
from tests.gguf_files import encode, wide_config, write_gguf
from tests.tiny import CPU, save_random_model

pytestmark = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("wide"), wide_config())


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.name)
def test_codes_are_the_values_that_the_gguf_package_gives(kind: Type) -> None:
    raw, values = encode(torch.randn(5, 512), kind, np.random.default_rng(0))
    assert torch.equal(codes_of(raw, kind).dense(), values)


def rounded(x: Tensor, steps: int) -> Tensor:
    """Blocks of 32 activations on the nearest of so many steps from zero to the largest magnitude."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, True) / steps
    nearest: Tensor = scale * (blocks / scale).nan_to_num().round()
    return nearest.flatten(-2)


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.name)
@torch.inference_mode()
def test_logits_are_those_of_the_weights_and_of_the_rounding(
    build: str, kind: Type, folder: Path, tmp_path: Path
) -> None:
    head = write_gguf(tmp_path / "model.gguf", folder, kind)["lm_head.weight"]
    checkpoint = load_checkpoint(str(tmp_path / "model.gguf"), None, CPU, quantization="auto")
    bits = checkpoint.quantized["lm_head.weight"].codes().bits
    fine_shift = 7 if bits == 8 else 8 - bits
    hidden = torch.randn(19, 256, generator=torch.Generator().manual_seed(1))
    hidden[3] = 0
    # A few activations lie between two steps, where the last bit of a product decides.
    cases: list[tuple[Activations, Tensor, float]] = [
        ("exact", hidden, 1e-5),
        ("int8", rounded(hidden, 127), 2e-3),
        ("fine", rounded(hidden, 127 << fine_shift), 8e-5),
    ]
    for activations, inputs, tolerance in cases:
        decoder = Decoder(checkpoint, activations)
        expected = (inputs.double() @ head.double().T).float()
        for count in (1, 2, 11, 19):
            found = decoder.logits(hidden[:count])
            assert (found - expected[:count]).abs().max() <= tolerance * expected.abs().max()


HIGHEST: dict[Type, tuple[int, slice, int]] = {
    Type.Q4_1: (20, slice(4, 20), 255),
    Type.Q5_1: (24, slice(4, 24), 255),
    Type.Q6_K: (210, slice(0, 192), 255),
    Type.Q8_0: (34, slice(2, 34), 127),
}
"""Of a type of each number of bits, the bytes of a block, where its codes are, and what makes them the highest."""


@pytest.mark.parametrize("activations", ["int8", "fine"])
@pytest.mark.parametrize("kind", HIGHEST, ids=lambda kind: kind.name)
@torch.inference_mode()
def test_the_highest_codes_and_activations_overflow_nowhere(
    build: str, kind: Type, activations: Activations, folder: Path, tmp_path: Path
) -> None:
    size, codes, highest = HIGHEST[kind]
    heads = []

    def raise_codes(tensors: dict[str, tuple[NDArray[Any], Type]]) -> None:
        raw = tensors["output.weight"][0].copy()
        raw.reshape(-1, size)[:, codes] = highest
        tensors["output.weight"] = raw, kind
        heads.append(torch.from_numpy(dequantize(raw, kind).copy()))

    write_gguf(tmp_path / "model.gguf", folder, kind, change_tensors=raise_codes)
    decoder = Decoder(load_checkpoint(str(tmp_path / "model.gguf"), None, CPU, quantization="auto"), activations)
    hidden = torch.ones(7, 256) * torch.tensor([[1.0], [-1], [2], [-3], [1], [1], [-1]])
    torch.testing.assert_close(decoder.logits(hidden), hidden @ heads[0].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.name)
@torch.inference_mode()
def test_a_file_at_its_bits_is_the_dequantised_model(build: str, kind: Type, folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", folder, kind)
    ids = list(range(7, 60))
    states = []
    both: tuple[Quantization, ...] = ("auto", "none")
    for quantization in both:
        checkpoint = load_checkpoint(str(tmp_path / "model.gguf"), torch.float32, CPU, quantization=quantization)
        assert bool(checkpoint.quantized) == (quantization == "auto")
        model = Decoder(checkpoint)
        cache = model.new_cache(1, 64)
        states.append(model.forward(TokenBatch([(0, 0, ids)], cache), cache))
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_without_kernels_torch_has_the_same_values(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", folder, Type.Q4_K)
    checkpoint = load_checkpoint(str(tmp_path / "model.gguf"), torch.float32, CPU, quantization="auto")
    native = Decoder(checkpoint)
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    plain = Decoder(checkpoint)
    assert (native.native is None, plain.native) == (False, None)
    assert native.precision == "Q4_K weights, float32 activations, float32 cache"
    assert plain.precision == "Q4_K weights dequantised to float32"
    hidden = torch.randn(3, 256)
    torch.testing.assert_close(native.logits(hidden), plain.logits(hidden), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_without_kernels_vectors_have_the_dtype_of_the_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {name: value for name, value in wide_config().to_dict().items() if name.startswith(("num_", "hidden_size"))}
    config = Qwen2Config(**shape, intermediate_size=256, vocab_size=wide_config().vocab_size)
    write_gguf(tmp_path / "model.gguf", save_random_model(tmp_path, config), Type.Q4_0)
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    logits = []
    both: tuple[Quantization, ...] = ("auto", "none")
    for quantization in both:
        model = Decoder(load_checkpoint(str(tmp_path / "model.gguf"), torch.bfloat16, CPU, quantization=quantization))
        cache = model.new_cache(1, 16)
        logits.append(model.logits(model.forward(TokenBatch([(0, 0, [3, 4, 5])], cache), cache)))
    assert torch.equal(*logits)

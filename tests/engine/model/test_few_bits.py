"""Checkpoints whose weights have few bits: kept as in their file or rounded, served by kernels and by torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from server.engine import Activations, Checkpoint, Decoder, Quantization, TokenBatch, load_checkpoint
from server.engine.model import kernels
from server.engine.model.gguf.codes import READERS
from server.engine.model.gguf.weights import FLOATS, SUPPORTED
from server.engine.model.quantization.rounding import Bits, RoundedWeight
from tests.gguf_files import CONFIGS, SHAPE, TOKENS, wide_config, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config

DESCRIBED = [name for name in CONFIGS if name != "llama with biases"]
"""Those whose biases, if any, a file's architecture tells of."""
IDS = [(7 * i) % len(TOKENS) for i in range(1, 40)]
OTHERS = sorted(SUPPORTED - READERS.keys() - FLOATS.keys())
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load(path: Path, quantization: Quantization, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return load_checkpoint(str(path), dtype, CPU, quantization=quantization)


def a_model(folder: Path, config: PreTrainedConfig, kind: Type | None) -> Path:
    """A random model's folder, or its GGUF file of one type."""
    path = save_random_model(folder, config)
    if kind is None:
        return path
    write_gguf(folder / "model.gguf", path, kind)
    return folder / "model.gguf"


@torch.inference_mode()
def logits(model: Decoder, ids: list[int] = IDS) -> Tensor:
    cache = model.new_cache(1, len(ids))
    return model.logits(model.forward(TokenBatch([(0, 0, ids)], cache), cache)).float()


def share_off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=["kernels", "torch"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which products are computed."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    elif kernels.build() is None:
        pytest.skip("no kernels for this processor")
    return str(request.param)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("kind", [None, Type.Q8_0, Type.Q4_K])
@pytest.mark.parametrize("name", DESCRIBED)
def test_any_model_is_served_in_the_bits_that_are_asked_for(
    name: str, kind: Type | None, quantization: Quantization, products: str, tmp_path: Path
) -> None:
    """Folder or file, tied or not, with biases and head norms: logits are those of the rounded values."""
    checkpoint = load(a_model(tmp_path, CONFIGS[name], kind), quantization)
    matrices = {key for key, shape in checkpoint.config.weight_shapes.items() if len(shape) == 2}
    assert checkpoint.quantized.keys() == matrices
    assert {weight.kind for weight in checkpoint.quantized.values()} == {quantization}
    model = Decoder(checkpoint)
    assert (model.native is not None) == (products == "kernels")
    assert model.precision.startswith(f"{quantization} weights")
    reference = AutoModelForCausalLM.from_config(checkpoint.described, dtype=torch.float32)
    reference.load_state_dict(checkpoint.dense_weights())
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0]
    assert share_off(logits(model), expected) < 1e-4
    original = logits(Decoder(load(checkpoint.path, "none")))
    # Eight bits rounded to eight are the same.
    is_same = (kind, quantization) == (Type.Q8_0, "int8")
    assert (share_off(logits(model), original) < 1e-4) == is_same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", ["auto", "int8", "none"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_without_kernels_weights_are_dequantised_to_the_models_dtype(
    name: str, quantization: Quantization, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases and norms too, which stay fp32 in a file at its bits."""
    path = a_model(tmp_path, CONFIGS[name], Type.Q8_0)
    expected = logits(Decoder(load(path, quantization)))
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    model = Decoder(load(path, quantization, dtype))
    assert model.native is None
    cache = model.new_cache(1, 8)
    assert model.forward(TokenBatch([(0, 0, [5, 6])], cache), cache).dtype == dtype
    assert share_off(logits(model), expected) < 0.1


def test_the_types_that_no_format_of_ours_holds() -> None:
    """Those that llama.cpp makes with the help of a text, and the ternary ones."""
    names = "IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ3_S IQ2_S IQ1_M TQ1_0 TQ2_0"
    assert {kind.name for kind in OTHERS} == set(names.split())


@pytest.mark.parametrize("quantization", ["auto", "int4"])
@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_types_that_no_format_holds_are_dequantised(kind: Type, quantization: Quantization, tmp_path: Path) -> None:
    path = a_model(tmp_path, wide_config(head_dim=64), kind)
    checkpoint = load(path, quantization)
    assert bool(checkpoint.quantized) == (quantization == "int4")
    if quantization == "auto":
        assert Decoder(checkpoint).precision == "float32"
        assert torch.equal(logits(Decoder(checkpoint)), logits(Decoder(load(path, "none"))))
    else:
        values = load(path, "none").weights["lm_head.weight"]
        assert torch.equal(checkpoint.dense("lm_head.weight"), RoundedWeight(values, 4).dense())
        assert logits(Decoder(checkpoint)).isfinite().all()


def test_types_may_differ_from_matrix_to_matrix(tmp_path: Path) -> None:
    """As in files named Q4_K_M; one matrix is of a type that is dequantised."""
    folder = save_random_model(tmp_path, wide_config(head_dim=64))
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    mixed = {"blk.0.ffn_up": Type.IQ3_S, "blk.0.ffn_down": Type.Q6_K, "blk.0.attn_v": Type.F16, "output": Type.Q8_0}
    sources: dict[Type, dict[str, Any]] = {kind: {} for kind in mixed.values()}
    for kind, tensors in sources.items():
        write_gguf(other, folder, kind, change_tensors=tensors.update)
    write_gguf(
        path,
        folder,
        Type.Q4_K,
        change_tensors=lambda own: own.update(
            {f"{name}.weight": sources[kind][f"{name}.weight"] for name, kind in mixed.items()}
        ),
    )
    checkpoint = load(path, "auto")
    model = Decoder(checkpoint)
    assert "model.layers.0.mlp.up_proj.weight" in checkpoint.weights
    assert "model.layers.0.self_attn.v_proj.weight" in checkpoint.weights
    assert model.precision.startswith("Q4_K and Q6_K and Q8_0 weights")
    assert share_off(logits(model), logits(Decoder(load(path, "none")))) < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rows_that_are_no_whole_groups_keep_their_precision(
    quantization: Quantization, products: str, tmp_path: Path
) -> None:
    config = tiny_config(hidden_size=48, head_dim=16, intermediate_size=96)
    checkpoint = load(save_random_model(tmp_path, config), quantization)
    rounded = {name.removeprefix("model.layers.0.") for name in checkpoint.quantized if ".0." in name}
    assert rounded == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert HEAD in checkpoint.weights
    exact = AutoModelForCausalLM.from_config(checkpoint.described, dtype=torch.float32)
    exact.load_state_dict(checkpoint.dense_weights())
    with torch.no_grad():
        expected = exact(torch.tensor([[5, 6, 7, 8]])).logits[0]
    assert share_off(logits(Decoder(checkpoint), [5, 6, 7, 8]), expected) < 1e-4


@pytest.mark.parametrize("kind", [None, Type.F32, Type.Q8_0])
@pytest.mark.parametrize("quantization", ["auto", "none", "int8", "int4"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_tied_weights_are_one(kind: Type | None, quantization: Quantization, is_tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(**SHAPE, tie_word_embeddings=is_tied)
    checkpoint = load(a_model(tmp_path, config, kind), quantization)
    assert checkpoint.is_tied == is_tied
    dense = checkpoint.dense_weights()
    assert dense.keys() == checkpoint.weights.keys() | checkpoint.quantized.keys()
    assert (dense[HEAD] is dense[EMBEDDINGS]) == is_tied
    assert checkpoint.rounded(4).is_tied == is_tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["auto", "none", "int4"])
def test_dense_weights_have_the_checkpoints_dtype(
    quantization: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = a_model(tmp_path, CONFIGS["qwen2"], Type.Q4_1)
    dense = load(path, quantization, dtype).dense_weights()
    assert {weight.dtype for weight in dense.values()} == {dtype}
    plain = load(path, "none", dtype).weights
    assert dense.keys() == plain.keys()
    if quantization == "auto":
        assert all(torch.equal(dense[name], plain[name]) for name in plain)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [None, Type.Q8_0])
def test_rounding_a_checkpoint_leaves_it_as_it_is(bits: Bits, kind: Type | None, tmp_path: Path) -> None:
    checkpoint = load(a_model(tmp_path, CONFIGS["qwen2"], kind), "auto")
    names = checkpoint.weights.keys(), checkpoint.quantized.keys()
    before = {name: weight.clone() for name, weight in checkpoint.dense_weights().items()}
    rounded = checkpoint.rounded(bits)
    assert {weight.kind for weight in rounded.quantized.values()} == {f"int{bits}"}
    assert all(weight.ndim == 1 for weight in rounded.weights.values())
    assert rounded.fingerprint == checkpoint.fingerprint
    assert names == (checkpoint.weights.keys(), checkpoint.quantized.keys())
    after = checkpoint.dense_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("quantization", ["none", "auto", "int4"])
def test_a_decoder_needs_no_weights_of_its_checkpoint(
    quantization: Quantization, products: str, tmp_path: Path
) -> None:
    """The file may go away too: a server holds its own copies."""
    checkpoint = load(a_model(tmp_path, CONFIGS["qwen3, tied"], Type.Q4_K), quantization)
    model = Decoder(checkpoint)
    expected = logits(model)
    checkpoint.forget_weights()
    assert not checkpoint.weights and not checkpoint.quantized
    (tmp_path / "model.gguf").unlink()
    assert torch.equal(logits(model), expected)


@pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")
@pytest.mark.parametrize(
    ("activations", "dtype", "expected"),
    [
        ("auto", torch.bfloat16, "fine"),
        ("auto", torch.float32, "float32"),
        ("int8", torch.float32, "8-bit"),
        ("fine", torch.float32, "fine"),
        ("exact", torch.bfloat16, "float32"),
    ],
)
def test_activations_are_rounded_unless_the_model_is_exact_or_asked_to_be(
    activations: Activations, dtype: torch.dtype, expected: str, tmp_path: Path
) -> None:
    path = a_model(tmp_path, CONFIGS["llama"], Type.Q4_1)
    checkpoint = load(path, "auto", dtype)
    model = Decoder(checkpoint, activations)
    cache = str(dtype).removeprefix("torch.")
    assert model.precision == f"Q4_1 weights, {expected} activations, {cache} cache"
    kinds: dict[str, Activations] = {"float32": "exact", "fine": "fine", "8-bit": "int8"}
    found = {name: logits(Decoder(checkpoint, each)) for name, each in kinds.items()}
    assert torch.equal(logits(model), found[expected])
    assert 0 < share_off(found["fine"], found["float32"]) < 0.5 * share_off(found["8-bit"], found["float32"]) < 0.05


@pytest.mark.parametrize("quantization", ["auto", "none", "int8", "int4"])
def test_a_fingerprint_is_that_of_the_file_whatever_bits_are_served(quantization: Quantization, tmp_path: Path) -> None:
    """So that an artifact goes on serving; what it costs to draft changes, the masks stay valid."""
    path = a_model(tmp_path, CONFIGS["llama"], Type.Q8_0)
    assert load(path, quantization).fingerprint == load(path, "none").fingerprint

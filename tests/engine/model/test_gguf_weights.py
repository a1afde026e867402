"""Weights of GGUF files: every type, llama.cpp's order of rows, and the logits that come of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

from server.engine import CheckpointError, Decoder, TokenBatch, load_checkpoint
from server.engine.model.gguf.file import open_gguf
from server.engine.model.gguf.weights import SUPPORTED, own_dtype
from tests.gguf_files import CONFIGS, TOKENS, wide_config, write_gguf
from tests.tiny import CPU, save_random_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("wide"), wide_config())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path), torch.float32, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", sorted(SUPPORTED), ids=lambda kind: kind.name)
def test_every_type_has_the_values_that_the_gguf_package_gives_it(folder: Path, tmp_path: Path, kind: Type) -> None:
    values = write_gguf(tmp_path / "model.gguf", folder, kind)
    for dtype in (torch.float32, torch.bfloat16):
        weights = load_checkpoint(str(tmp_path / "model.gguf"), dtype, CPU).weights
        assert weights.keys() == values.keys()
        assert all(torch.equal(weights[name], value.to(dtype)) for name, value in values.items())


def test_the_types_are_those_that_llama_cpp_writes() -> None:
    names = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"
    assert {Type[name] for name in names.split()} <= SUPPORTED


def logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    cache = model.new_cache(1, len(ids))
    return model.logits(model.forward(TokenBatch([(0, 0, ids)], cache), cache))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q6_K])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_with_the_same_values(tmp_path: Path, name: str, kind: Type) -> None:
    folder = save_random_model(tmp_path, CONFIGS[name])
    values = write_gguf(tmp_path / "model.gguf", folder, kind)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.load_state_dict({"lm_head.weight": values["model.embed_tokens.weight"], **values})
    ids = [(7 * i) % len(TOKENS) for i in range(1, 40)]
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0]
    found = logits(Decoder(load_checkpoint(str(tmp_path / "model.gguf"), torch.float32, CPU)), ids)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Type.F32, torch.float32),
        (Type.BF16, torch.bfloat16),
        (Type.F16, torch.float32),
        (Type.Q8_0, torch.bfloat16),
        (Type.Q4_K, torch.bfloat16),
    ],
    ids=str,
)
def test_a_file_has_a_dtype_of_its_own(folder: Path, tmp_path: Path, kind: Type, expected: torch.dtype) -> None:
    write_gguf(tmp_path / "model.gguf", folder, kind)
    checkpoint = load_checkpoint(str(tmp_path / "model.gguf"), None, CPU)
    assert checkpoint.dtype == expected
    assert {weight.dtype for weight in checkpoint.weights.values()} == {expected}


def test_half_precision_stays_so_where_there_are_kernels_for_it(folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", folder, Type.F16)
    assert own_dtype(open_gguf(tmp_path / "model.gguf"), torch.device("cuda")) == torch.float16


def fingerprint(path: Path, dtype: torch.dtype | None = torch.float32) -> str:
    return load_checkpoint(str(path), dtype, CPU).fingerprint


def test_the_fingerprint_is_that_of_the_folder_where_nothing_was_rounded(folder: Path, tmp_path: Path) -> None:
    """A routing artifact that was made for the folder then serves the file."""
    write_gguf(tmp_path / "model.gguf", folder, Type.F32)
    assert fingerprint(tmp_path / "model.gguf") == fingerprint(folder)


@pytest.mark.parametrize("kind", [Type.F16, Type.Q4_0, Type.Q4_K], ids=lambda kind: kind.name)
def test_the_fingerprint_does_not_depend_on_the_dtype(folder: Path, tmp_path: Path, kind: Type) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, kind)
    assert len({fingerprint(path, dtype) for dtype in (torch.float32, torch.bfloat16, None)}) == 1
    assert fingerprint(path) != fingerprint(folder)


def test_the_fingerprint_tells_quantised_weights_apart(folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", folder, Type.Q8_0)
    other = save_random_model(tmp_path / "other", wide_config(), seed=1)
    write_gguf(tmp_path / "other.gguf", other, Type.Q8_0)
    assert fingerprint(tmp_path / "model.gguf") != fingerprint(tmp_path / "other.gguf")


def test_a_type_that_we_cannot_read_is_named(folder: Path, tmp_path: Path) -> None:
    blocks = np.zeros((256, 292), np.uint8)
    path = tmp_path / "model.gguf"
    write_gguf(
        path, folder, change_tensors=lambda tensors: tensors.update({"blk.0.ffn_up.weight": (blocks, Type.Q8_K)})
    )
    message = refusal(path)
    assert "blk.0.ffn_up.weight has the type Q8_K, which is not supported" in message
    assert "Q4_K" in message


def test_a_tensor_without_a_place_in_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    gate = np.zeros((4, 256), np.float32)
    path = tmp_path / "model.gguf"
    write_gguf(
        path, folder, change_tensors=lambda tensors: tensors.update({"blk.0.ffn_gate_inp.weight": (gate, Type.F32)})
    )
    assert "has the tensor blk.0.ffn_gate_inp.weight, which a supported model does not have" in refusal(path)


def test_missing_tensors_are_counted_and_one_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, change_tensors=lambda tensors: tensors.pop("blk.0.ffn_up.weight"))
    assert "lacks 1 weights, the first is model.layers.0.mlp.up_proj.weight" in refusal(path)


@pytest.mark.parametrize("name", ["attn_q.weight", "ffn_down.weight"])
def test_a_wrong_shape_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    wrong = np.zeros((128, 256), np.float32)
    write_gguf(path, folder, change_tensors=lambda tensors: tensors.update({f"blk.0.{name}": (wrong, Type.F32)}))
    assert "has shape (128, 256), its config says (256, 256)" in refusal(path)


@pytest.mark.parametrize("name", ["attn_q.bias", "attn_q_norm.weight", "attn_k_norm.weight"])
def test_a_wrong_shape_of_an_optional_tensor_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    wrong = np.zeros(1, np.float32)
    write_gguf(path, folder, change_tensors=lambda tensors: tensors.update({f"blk.0.{name}": (wrong, Type.F32)}))
    assert "has shape (1,), its config says" in refusal(path)


def test_loading_leaves_torchs_threads_as_they_were(folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", folder, Type.Q8_0)
    torch.set_num_threads(2)
    try:
        load_checkpoint(str(tmp_path / "model.gguf"), torch.float32, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)

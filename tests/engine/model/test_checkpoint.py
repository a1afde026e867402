"""Reading checkpoints: what is taken from the folder, and one sentence for everything that is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.engine import CheckpointError, SamplingParams, load_checkpoint
from server.engine.model.checkpoint import SUPPORTED
from tests.tiny import CPU, save_random_model, tiny_config


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def refusal(folder: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder), torch.float32, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_a_checkpoint_holds(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    config = checkpoint.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, 2, 8)
    assert (config.num_groups, config.vocabulary_size, config.max_length) == (2, 262, 256)
    assert checkpoint.rope.shape == (2, 256, 8)
    assert checkpoint.eos_ids == {2}
    assert checkpoint.defaults == {}
    assert checkpoint.tokenizer.chat_template


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_weights_come_in_the_dtype_asked_for_or_their_own(folder: Path, dtype: torch.dtype | None) -> None:
    checkpoint = load_checkpoint(str(folder), dtype, CPU)
    assert {weight.dtype for weight in checkpoint.weights.values()} == {dtype or torch.float32}
    assert checkpoint.dtype == (dtype or torch.float32)
    assert checkpoint.fingerprint == load_checkpoint(str(folder), torch.float32, CPU).fingerprint


def test_the_fingerprint_tells_weights_apart(folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(str(folder), torch.float32, CPU).fingerprint
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert load_checkpoint(str(copied), torch.float32, CPU).fingerprint == first
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copied / "model.safetensors")
    assert load_checkpoint(str(copied), torch.float32, CPU).fingerprint != first


def test_an_unsupported_architecture_names_the_supported_ones(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["GPT2LMHeadModel"])
    message = refusal(folder)
    assert "GPT2LMHeadModel" in message
    assert all(name in message for name in SUPPORTED)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("architectures", None, "no architecture"),
        ("hidden_act", "gelu", "'gelu'"),
        ("vocab_size", 300, "embed_tokens.weight has shape (262, 32), its config says (300, 32)"),
        ("intermediate_size", 128, "gate_proj.weight has shape"),
        ("num_hidden_layers", 5, "model.layers.4."),
        ("num_hidden_layers", "four", "num_hidden_layers"),
        ("num_hidden_layers", 0, "num_layers is 0"),
        ("num_attention_heads", 3, "attention heads (3)"),
        ("num_key_value_heads", 3, "4 heads cannot share 3"),
        ("num_key_value_heads", 0, "num_kv_heads is 0"),
        (
            "rope_parameters",
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5},
            "RoPE turns 4 numbers of a head's 8",
        ),
        ("rope_parameters", {"rope_type": "weird", "rope_theta": 10000.0}, "weird"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantised"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(folder: Path, field: str, value: object, expected: str) -> None:
    edit_json(folder / "config.json", **{field: value})
    assert expected in refusal(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "nothing" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["{", "[]", "{}", ""])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "cannot read the model" in refusal(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_other_broken_json_is_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    refusal(folder)


@pytest.mark.parametrize("changes", [{"eos_token_id": "end"}, {"do_sample": True, "temperature": "hot"}], ids=str)
def test_generation_defaults_that_are_not_numbers_are_refused(folder: Path, changes: dict[str, object]) -> None:
    edit_json(folder / "generation_config.json", **changes)
    assert "cannot read the model" in refusal(folder)


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only safetensors checkpoints are supported" in refusal(folder)


def test_a_truncated_weight_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refusal(folder)


def test_missing_weights_are_counted_and_one_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: weight for name, weight in load_file(path).items() if "layers.2.mlp" not in name}
    save_file(kept, path)
    assert "lacks 3 weights, the first is model.layers.2.mlp.gate_proj.weight" in refusal(folder)


OPTIONAL = {
    "self_attn.q_proj.bias": (32,),
    "self_attn.k_proj.bias": (16,),
    "mlp.down_proj.bias": (32,),
    "self_attn.q_norm.weight": (8,),
    "self_attn.k_norm.weight": (8,),
}
"""Weights that not every model has, and their shapes in the tiny one."""


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("change", [lambda n: (n - 1,), lambda n: (1,), lambda n: (n, 1), lambda n: ()])
def test_optional_weights_of_a_wrong_shape_are_refused(
    folder: Path, name: str, change: Callable[[int], tuple[int, ...]]
) -> None:
    """Kernels read as many numbers as the config says, whatever the tensor holds."""
    path, full_name = folder / "model.safetensors", f"model.layers.1.{name}"
    (size,) = OPTIONAL[name]
    save_file({**load_file(path), full_name: torch.ones(change(size))}, path)
    message = refusal(folder)
    assert f"{full_name} has shape {change(size)}, its config says ({size},)" in message


def test_optional_weights_of_the_right_shape_are_taken(folder: Path) -> None:
    path = folder / "model.safetensors"
    added = {f"model.layers.1.{name}": torch.ones(shape) for name, shape in OPTIONAL.items()}
    save_file({**load_file(path), **added}, path)
    assert added.keys() <= load_checkpoint(str(folder), torch.float32, CPU).weights.keys()


@pytest.mark.parametrize("break_tokenizer", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_broken_or_missing_tokenizer_is_refused(folder: Path, break_tokenizer: Callable[[Path], object]) -> None:
    break_tokenizer(folder / "tokenizer.json")
    assert "cannot read the tokenizer" in refusal(folder)


def shard(folder: Path) -> list[Path]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_sharded_checkpoint_is_the_same_model(folder: Path) -> None:
    whole = load_checkpoint(str(folder), torch.float32, CPU)
    assert len(shard(folder)) > 1
    sharded = load_checkpoint(str(folder), torch.float32, CPU)
    assert sharded.fingerprint == whole.fingerprint
    assert all(torch.equal(sharded.weights[name], weight) for name, weight in whole.weights.items())


def test_a_missing_shard_is_named(folder: Path) -> None:
    shards = shard(folder)
    shards[-1].unlink()
    assert shards[-1].name in refusal(folder)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, tiny_config(tie_word_embeddings=True))
    weights = load_checkpoint(str(folder), torch.float32, CPU).weights
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_generation_defaults_and_several_ends_are_read(folder: Path) -> None:
    recommended = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [2, 5]}
    edit_json(folder / "generation_config.json", **recommended)
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    assert checkpoint.defaults == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    assert checkpoint.sampling == SamplingParams(0.6, 0.9, 20)
    assert checkpoint.eos_ids == {2, 5}


def test_sampling_defaults_without_sampling_do_not_count(folder: Path) -> None:
    edit_json(folder / "generation_config.json", do_sample=False)
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    assert checkpoint.defaults == {}
    assert checkpoint.sampling == SamplingParams(temperature=1.0)


def test_without_a_generation_config_the_end_is_the_models(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_json(folder / "config.json", eos_token_id=[2, 3])
    assert load_checkpoint(str(folder), torch.float32, CPU).eos_ids == {2, 3}


def mistral(folder: Path, sliding_window: int | None) -> None:
    edit_json(
        folder / "config.json",
        model_type="mistral",
        architectures=["MistralForCausalLM"],
        sliding_window=sliding_window,
    )


@pytest.mark.parametrize(("window", "expected"), [(100, 100), (None, 256), (10_000, 256)])
def test_a_sliding_window_limits_the_context(folder: Path, window: int | None, expected: int) -> None:
    mistral(folder, window)
    assert load_checkpoint(str(folder), torch.float32, CPU).config.max_length == expected


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({"rope_type": "default", "rope_theta": 10000.0}, 256),
    "llama3": ({"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA_3}, 256),
    "longrope": ({"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, **LONG}, 64),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 256),
    "linear": ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, 256),
    "yarn": ({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}, 256),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_that_of_transformers_at_any_length_up_to_the_limit(folder: Path, name: str) -> None:
    """Dynamic RoPE changes its frequencies with the length, so the context ends where it would begin to."""
    parameters, expected = ROPES[name]
    edit_json(folder / "config.json", rope_parameters=parameters)
    checkpoint = load_checkpoint(str(folder), torch.float32, CPU)
    assert checkpoint.config.max_length == expected
    config = PreTrainedConfig.from_pretrained(folder)
    for length in (5, expected):
        rotary = LlamaRotaryEmbedding(tiny_config(**{**config.to_dict(), "rope_parameters": parameters}))
        cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
        half = cos.shape[-1] // 2
        assert torch.equal(checkpoint.rope[0, :length], cos[0])
        assert torch.equal(checkpoint.rope[1, :length, half:], sin[0, :, half:])
        assert torch.equal(checkpoint.rope[1, :length, :half], -sin[0, :, :half])

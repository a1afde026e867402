"""The shape and RoPE that a GGUF file's metadata describe."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.engine import Checkpoint, CheckpointError, load_checkpoint
from server.engine.model.gguf.config import ARCHITECTURES
from tests.gguf_files import TOKENS, Metadata, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("tiny"), tiny_config(vocab_size=len(TOKENS)))


def load(folder: Path, to: Path, changes: Metadata, **options: Any) -> Checkpoint:
    write_gguf(to / "model.gguf", folder, changes=changes, **options)
    return load_checkpoint(str(to / "model.gguf"), torch.float32, CPU)


def refusal(folder: Path, to: Path, changes: Metadata) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, to, changes)
    message = str(caught.value)
    assert "\n" not in message
    assert str(to / "model.gguf") in message
    return message


def test_the_shape_is_that_of_the_folder(folder: Path, tmp_path: Path) -> None:
    config = load(folder, tmp_path, {}).config
    assert config == load_checkpoint(str(folder), torch.float32, CPU).config
    assert config.norm_epsilon == json.loads((folder / "config.json").read_text())["rms_norm_eps"]


def test_what_a_file_leaves_out_has_llama_cpps_default(folder: Path, tmp_path: Path) -> None:
    left_out = ("attention.key_length", "attention.value_length", "rope.freq_base")
    checkpoint = load(folder, tmp_path, {f"llama.{name}": None for name in left_out})
    assert checkpoint.config.head_dim == 8
    assert torch.equal(checkpoint.rope, load_checkpoint(str(folder), torch.float32, CPU).rope)


@pytest.mark.parametrize(("window", "expected"), [(100, 100), (10_000, 256)])
def test_a_sliding_window_limits_the_context(folder: Path, tmp_path: Path, window: int, expected: int) -> None:
    checkpoint = load(folder, tmp_path, {"llama.attention.sliding_window": window})
    assert checkpoint.config.max_length == expected


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def llama_3_divisors(base: float, head_dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """As llama.cpp's converter works them out."""
    divisors = []
    for frequency in 1.0 / base ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4.0:
            divisors.append(1.0)
        elif wavelength > 64 / 1.0:
            divisors.append(8.0)
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            divisors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(divisors, np.float32)


ROPES: dict[str, tuple[Metadata, dict[str, Any]]] = {
    "plain": ({}, {"rope_type": "default"}),
    "none": ({"type": "none", "factor": 2.0}, {"rope_type": "default"}),
    "linear": ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    "linear without a name": ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "finetuned": True},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn with its own limits": (
        {"type": "yarn", "factor": 4.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 16, "beta_slow": 2},
    ),
    "llama 3": ({}, {"rope_type": "llama3", **LLAMA_3}),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_that_of_transformers(folder: Path, tmp_path: Path, name: str) -> None:
    scaling, parameters = ROPES[name]
    changes = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    divisors = llama_3_divisors(500.0, 8)
    options: dict[str, Any] = {}
    if name == "llama 3":
        assert len(set(divisors)) > 2
        options["change_tensors"] = lambda tensors: tensors.update({"rope_freqs.weight": (divisors, Type.F32)})
    checkpoint = load(folder, tmp_path, {"llama.rope.freq_base": 500.0, **changes}, **options)
    rotary = LlamaRotaryEmbedding(tiny_config(rope_parameters={"rope_theta": 500.0, **parameters}))
    cos, sin = rotary(torch.zeros(1), torch.arange(256)[None])
    assert torch.allclose(checkpoint.rope[0], cos[0], atol=1e-5)
    assert torch.allclose(checkpoint.rope[1, :, 4:], sin[0, :, 4:], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general.architecture": "gemma3"}, "is a 'gemma3', which is not supported; supported: llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "is a mixture of experts"),
        ({"llama.block_count": None}, "has no llama.block_count in its metadata"),
        ({"llama.block_count": 0}, "block_count is 0"),
        ({"llama.block_count": 9}, "lacks 45 weights, the first is model.layers.4."),
        ({"llama.attention.head_count": 0}, "attention.head_count is 0"),
        ({"llama.attention.head_count": [4, 4, 2, 2]}, "llama.attention.head_count is [4, 4, 2, 2], where one int"),
        ({"llama.attention.head_count_kv": 3}, "4 heads cannot share 3"),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, "is small, where one float is expected"),
        ({"llama.attention.value_length": 16}, "attention.value_length is not the 8 of its keys"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is not the 8 of its keys"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "the RoPE scaling 'longrope'"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 2.0}, "the RoPE scaling attn_factor"),
        ({"llama.rope.scale_linear": 4.0}, "has llama.rope.scale_linear, which llama.cpp wrote in 2023"),
        ({"llama.context_length": True}, "llama.context_length is True, where one int is expected"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(
    folder: Path, tmp_path: Path, changes: Metadata, expected: str
) -> None:
    assert expected in refusal(folder, tmp_path, changes)


def test_every_architecture_is_named() -> None:
    assert ARCHITECTURES == ("llama", "qwen2", "qwen3")


def test_a_file_without_embeddings_is_no_whole_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no token_embd.weight: it is not a whole model"):
        load(folder, tmp_path, {}, change_tensors=lambda tensors: tensors.pop("token_embd.weight"))


def test_recommended_sampling_is_passed_on(folder: Path, tmp_path: Path) -> None:
    names = {"temp": 0.5, "top_p": 0.75, "top_k": 20, "min_p": 0.1}
    checkpoint = load(folder, tmp_path, {f"general.sampling.{name}": value for name, value in names.items()})
    assert checkpoint.defaults == {"temperature": 0.5, "top_p": 0.75, "top_k": 20}

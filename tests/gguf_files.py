"""Writes small GGUF files on the spot, as llama.cpp's converter would write a Hugging Face folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_config

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TOKENS = [
    *SPECIAL_TOKENS,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
]
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=64),
    "qwen3, tied": Qwen3Config(**SHAPE, head_dim=64, tie_word_embeddings=True),
}
FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
SCALES = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
    Type.IQ1_M: (),
}
"""Where a block has its float16 scales; first, where it is not named here."""
MIDDLES = {Type.Q2_K: 1.5, Type.Q4_K: 7.5, Type.Q5_K: 15.5}
"""The middle code of types whose blocks have a unit of scales and one of minima."""

Metadata = dict[str, Any]


def wide_config(**changes: Any) -> LlamaConfig:
    """A model of one layer whose rows hold whole blocks of every type."""
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": len(TOKENS)}
    return tiny_config(**{**shape, **changes})


def random_blocks(kind: Type, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks [rows, bytes of a row] of a type, with small scales and whatever else; their mean is about zero."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // per_block, block_bytes), np.uint8)
    if kind not in MIDDLES:
        # Without this bit no float16 among them is infinite, wherever a type hides its scale.
        blocks &= 0xBF
    for start in SCALES.get(kind, (0,)):
        scales = rng.uniform(0.0005, 0.002, (len(blocks), 1)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8)
    if kind in MIDDLES:
        set_minima(blocks, kind, scales)
    return blocks.reshape(shape[0], -1)


def set_minima(blocks: NDArray[np.uint8], kind: Type, scales: NDArray[np.float16]) -> None:
    """Makes minima of a block's scales, in units that take each group's mean to zero; else all outputs are alike.

    The lowest bit of a minimum stays as it is, so that one that was taken for a scale would be noticed.
    """
    unit, minimum_unit = SCALES[kind]
    blocks[:, unit : unit + 2] = scales.view(np.uint8)
    blocks[:, minimum_unit : minimum_unit + 2] = (MIDDLES[kind] * scales).astype(np.float16).view(np.uint8)
    nibbles = blocks[:, :16] if kind == Type.Q2_K else blocks[:, 12:16]
    nibbles[:] = nibbles & 31 | (nibbles & 14) << 4
    if kind != Type.Q2_K:
        blocks[:, 8:12] = blocks[:, 4:8] & 254 | blocks[:, 8:12] & 1


def encode(weight: Tensor, kind: Type, rng: np.random.Generator) -> tuple[NDArray[Any], Tensor]:
    """A weight as the file has it, and the values that it then stands for."""
    if kind in FLOATS:
        stored = weight.to(FLOATS[kind]).contiguous()
        raw = stored.view(torch.uint8).numpy() if kind == Type.BF16 else stored.numpy()
        return raw, stored.float()
    try:
        raw = gguf.quantize(weight.numpy(), kind)
    except NotImplementedError:
        raw = random_blocks(kind, tuple(weight.shape), rng)
    return raw, torch.from_numpy(gguf.dequantize(raw, kind).copy())


def interleave(rows: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """`LlamaModel.permute` of llama.cpp's converter."""
    return (
        rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def write_gguf(
    path: Path,
    folder: Path,
    kind: Type = Type.F32,
    changes: Metadata | None = None,
    change_tensors: Callable[[dict[str, tuple[NDArray[Any], Type]]], object] | None = None,
    max_tensors: int = 0,
) -> dict[str, Tensor]:
    """Writes a folder's model, matrices of one type, and returns what its weights then are, by Hugging Face name.

    `changes` are metadata to add or replace, None to leave one out; `max_tensors` splits the file.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors, values = convert(load_file(folder / "model.safetensors"), config, kind)
    if change_tensors:
        change_tensors(tensors)
    writer = gguf.GGUFWriter(path, config["model_type"], split_max_tensors=max_tensors)
    for key, value in {**described(config), **tokenizer_metadata(), **(changes or {})}.items():
        if key == "general.architecture":
            writer.kv_data[0].pop(key)
        if value is not None:
            add(writer, key, value)
    for name, (raw, one_kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=one_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def convert(
    weights: dict[str, Tensor], config: dict[str, Any], kind: Type
) -> tuple[dict[str, tuple[NDArray[Any], Type]], dict[str, Tensor]]:
    """Tensors under GGUF's names, and the values that they stand for under Hugging Face's."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    rng = np.random.default_rng(0)
    tensors, values = {}, {}
    for name, weight in weights.items():
        stem, _, ending = name.rpartition(".")
        used = kind if weight.ndim == 2 else Type.F32
        raw, values[name] = encode(weight, used, rng)
        part = stem.rpartition(".")[2]
        if config["model_type"] == "llama" and part in heads:
            raw = interleave(raw, heads[part])
        tensors[f"{names.get_name(stem)}.{ending}"] = raw, used
    return tensors, values


def described(config: dict[str, Any]) -> Metadata:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    fields = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }
    return {f"{config['model_type']}.{name}": value for name, value in fields.items()}


def tokenizer_metadata() -> Metadata:
    special = {"bos": 1, "eos": 2, "padding": 0}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in TOKENS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **{f"tokenizer.ggml.{role}_token_id": i for role, i in special.items()},
    }


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

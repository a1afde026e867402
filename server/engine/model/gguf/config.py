"""Reads the fields of a Hugging Face config out of a GGUF file's metadata."""

from typing import Any

import torch
from torch import Tensor

from server.engine.model.gguf.file import GgufFile
from server.engine.model.gguf.weights import dequantize
from server.engine.model.weights import CheckpointError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""llama.cpp's names of what we serve; Mistral's models are `llama` there."""

ROPE_SETTINGS = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""Numbers under `rope.scaling.`, and their names in Hugging Face's `rope_parameters`."""

SAMPLING_SETTINGS = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k"}
"""Numbers under `general.sampling.`, and their names in a request."""


def config_fields(file: GgufFile) -> dict[str, Any]:
    """The fields of Hugging Face's config for this model; raises `CheckpointError` for one that we cannot serve."""
    architecture = read_architecture(file)
    hidden_size, num_heads = count(file, "embedding_length"), count(file, "attention.head_count")
    head_dim = count(file, "attention.key_length", hidden_size // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if count(file, name, head_dim) != head_dim:
            raise CheckpointError(f"{file.path}: {name} is not the {head_dim} of its keys, which is not supported")
    context = count(file, "context_length")
    return {
        "model_type": architecture,
        "num_hidden_layers": count(file, "block_count"),
        "hidden_size": hidden_size,
        "intermediate_size": count(file, "feed_forward_length"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": count(file, "attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "vocab_size": vocabulary_size(file),
        "rms_norm_eps": file.get(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": min(context, count(file, "attention.sliding_window", context)),
        "rope_parameters": rope_parameters(file, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def read_architecture(file: GgufFile) -> str:
    architecture = str(file.get("general.architecture", str))
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path} is a {architecture!r}, which is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if file.get(f"{architecture}.expert_count", int, 0):
        raise CheckpointError(f"{file.path} is a mixture of experts, which is not supported")
    return architecture


def count(file: GgufFile, name: str, default: int | None = None) -> int:
    """One of the architecture's own numbers; where each layer has its own, it is a list and refused."""
    architecture = file.metadata["general.architecture"]
    value = int(file.get(f"{architecture}.{name}", int, default))
    if value < 1:
        raise CheckpointError(f"{file.path}: {name} is {value}; it must be at least 1")
    return value


def vocabulary_size(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no token_embd.weight: it is not a whole model")
    return file.tensors["token_embd.weight"].shape[0]


def rope_parameters(file: GgufFile, context: int) -> dict[str, Any]:
    """Base and scaling; without a type, llama.cpp scales linearly."""
    prefix = f"{file.metadata['general.architecture']}.rope."
    parameters = {"rope_type": "default", "rope_theta": float(file.get(prefix + "freq_base", float, 10000.0))}
    if file.get(prefix + "scale_linear", float, 1.0) != 1.0:
        raise CheckpointError(f"{file.path} has {prefix}scale_linear, which llama.cpp wrote in 2023; convert it again")
    given = {key.removeprefix(prefix + "scaling."): key for key in file.metadata if key.startswith(prefix + "scaling.")}
    scaling = file.get(given.pop("type"), str) if "type" in given else "linear" if "factor" in given else "none"
    if scaling == "none":
        return parameters
    given.pop("finetuned", None)
    unknown = sorted(given.keys() - ROPE_SETTINGS.keys())
    if scaling not in ("linear", "yarn") or unknown:
        named = unknown[0] if scaling in ("linear", "yarn") else repr(scaling)
        raise CheckpointError(f"{file.path} has the RoPE scaling {named}, which is not supported")
    numbers = {ROPE_SETTINGS[name]: file.get(key, float) for name, key in given.items()}
    original = {"original_max_position_embeddings": context} if scaling == "yarn" else {}
    return {**parameters, "rope_type": scaling, **original, **numbers}


def rope_divisors(file: GgufFile) -> Tensor | None:
    """Divisors of the RoPE frequencies, [head_dim / 2]: Llama 3's scaling, worked out by llama.cpp's converter."""
    tensor = file.tensors.get("rope_freqs.weight")
    return None if tensor is None else dequantize(tensor.blocks, tensor.type, tensor.shape, torch.float32)


def sampling_defaults(file: GgufFile) -> dict[str, float | int]:
    """The sampling that the model's authors recommend, where the file passes it on."""
    keys = {name: f"general.sampling.{key}" for key, name in SAMPLING_SETTINGS.items()}
    return {name: float(file.get(key, float)) for name, key in keys.items() if key in file.metadata}

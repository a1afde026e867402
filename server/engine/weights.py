"""Weights from safetensors files under their Hugging Face names, and the shapes that a decoder needs of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from server.engine.artifact import digest_tensor


class CheckpointError(Exception):
    """The folder or name cannot be served; the message is one sentence."""


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers of a Llama-shaped decoder; `max_length` is the longest context it may attend to."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary_size: int
    max_length: int
    norm_epsilon: float

    @property
    def num_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights that every layer has."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        vocabulary = (self.vocabulary_size, self.hidden_size)
        layers = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(self.num_layers)
            for name, shape in self.layer_shapes.items()
        }
        edges = {"model.norm.weight": (self.hidden_size,), "model.embed_tokens.weight": vocabulary}
        return {**layers, **edges, "lm_head.weight": vocabulary}


def read_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    """All tensors of the folder's safetensors files, and their digests as they are on disk."""
    weights: dict[str, Tensor] = {}
    digests: dict[str, bytes] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    digests[name] = digest_tensor(tensor)
                    weights[name] = tensor.to(device, dtype)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return weights, digests


def weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files") from error
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} has no {name}: only safetensors checkpoints are supported")
    return [folder / name for name in names]


def check_weights(config: DecoderConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Refuses missing weights and wrong shapes, so that nothing reads outside a tensor later."""
    too_small = [name for name, size in vars(config).items() if isinstance(size, int) and size < 1]
    if too_small:
        raise CheckpointError(f"{folder}: its config says {too_small[0]} is {getattr(config, too_small[0])}")
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(f"{folder}: {config.num_heads} heads cannot share {config.num_kv_heads} key heads")
    missing = [name for name in config.weight_shapes if name not in weights]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")
    for name, shape in config.weight_shapes.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{folder}: {name} has shape {tuple(weights[name].shape)}, its config says {shape}")

"""Weights from safetensors files, under their Hugging Face names."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.model.fingerprint import digest_tensor


class CheckpointError(Exception):
    """The folder, file or name cannot be served; the message is one sentence."""


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
            raise CheckpointError(f"{folder} has no {name}: only safetensors checkpoints are supported, and GGUF files")
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

"""Weights from safetensors files, under their Hugging Face names."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.model.fingerprint import digest_tensor
from server.engine.model.quantization.codes import QuantizedWeight
from server.engine.model.quantization.rounding import Bits, RoundedWeight, can_round


class CheckpointError(Exception):
    """The folder, file or name cannot be served; the message is one sentence."""


@dataclass(frozen=True)
class StoredWeights:
    """What model files hold: matrices that stay at their few bits, all other tensors, and digests of both."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
        yield from self.weights.items()
        yield from self.quantized.items()

    def round(self, bits: Bits) -> None:
        """Has every matrix that can be rounded to so many bits."""
        for name, weight in list(self):
            if can_round(weight):
                self.weights.pop(name, None)
                self.quantized[name] = RoundedWeight(weight, bits)

    def tie_head(self) -> None:
        """Makes the embeddings the output head too."""
        head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
        if embeddings in self.weights:
            self.weights[head] = self.weights[embeddings]
        if embeddings in self.quantized:
            self.quantized[head] = self.quantized[embeddings]

    def check(self, config: DecoderConfig, folder: Path) -> None:
        """Refuses missing weights and wrong shapes, so that nothing reads outside a tensor later."""
        check_shapes(config, {name: weight.shape for name, weight in self}, folder)


def read_weights(folder: Path, dtype: torch.dtype) -> StoredWeights:
    """All tensors of the folder's safetensors files, and their digests as they are on disk.

    Those that have this dtype there are the file's memory, which the system reads when it is used and may drop again.
    """
    stored = StoredWeights()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    stored.digests[name] = digest_tensor(tensor)
                    stored.weights[name] = tensor.to(dtype)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return stored


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


def check_shapes(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    too_small = [name for name, size in vars(config).items() if isinstance(size, int) and size < 1]
    if too_small:
        raise CheckpointError(f"{folder}: its config says {too_small[0]} is {getattr(config, too_small[0])}")
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(f"{folder}: {config.num_heads} heads cannot share {config.num_kv_heads} key heads")
    missing = [name for name in config.weight_shapes if name not in shapes]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")
    optional = {name: shape for name, shape in config.optional_shapes.items() if name in shapes}
    for name, shape in (config.weight_shapes | optional).items():
        if tuple(shapes[name]) != shape:
            raise CheckpointError(f"{folder}: {name} has shape {tuple(shapes[name])}, its config says {shape}")

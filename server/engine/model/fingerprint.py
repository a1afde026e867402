"""One name for a model, by its shape and its weights: what a routing artifact belongs to."""

import hashlib

import torch
from torch import Tensor


def digest_tensor(tensor: Tensor) -> bytes:
    """A digest of shape and of an even sample of at most 4,096 values, before any change of dtype."""
    flat = tensor.flatten()
    sample = flat[:: max(flat.numel() // 4096, 1)].to("cpu", torch.float32)
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + sample.contiguous().numpy().tobytes()).digest()


def fingerprint(architecture: dict[str, object], digests: dict[str, bytes]) -> str:
    """One name for a model: its architecture and the digests of its weights."""
    whole = hashlib.sha256(repr(sorted(architecture.items())).encode())
    for name in sorted(digests):
        whole.update(name.encode() + digests[name])
    return whole.hexdigest()[:32]

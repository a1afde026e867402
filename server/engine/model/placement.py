"""Where a model runs and in which precision: the names that flags take, and what they stand for."""

from typing import Literal

import torch

from server.engine.model.quantization.rounding import Bits

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "none", "int8", "int4"]
"""Of the weights: `auto` keeps a quantised file's, `none` dequantises them, the others round those of any model."""
ROUNDED_BITS: dict[Quantization, Bits] = {"int8": 8, "int4": 4}
Activations = Literal["auto", "int8", "fine", "exact"]
"""What the kernels multiply weights of few bits with: activations of 8 bits, finer ones of 10 to 16, or fp32."""
FINE = 16
"""So many bits they have with weights of 8 bits; with fewer, as many as the kernels get for nothing (`inputs.hpp`)."""
DraftWeights = Literal["none", "int8", "int4", "auto"]
"""A copy in fewer bits that drafts are computed with; `auto` takes 4 bits where that pays."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_device(name: str) -> torch.device:
    """The device of a name such as `cpu` or `cuda:1`; `auto` takes CUDA where the machine has it.

    Raises `ValueError` where torch knows no such device, and for CUDA on a machine without it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is not a torch device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device")
    return device


def parse_dtype(name: DtypeName) -> torch.dtype | None:
    """The precision of this name; None for `auto`, which stands for the checkpoint's own."""
    return DTYPES.get(name)


def activation_bits(activations: Activations, dtype: torch.dtype) -> int:
    """The bits that the kernels know activations by; `auto` is fine unless the model runs in fp32."""
    if activations == "auto":
        activations = "exact" if dtype == torch.float32 else "fine"
    return {"int8": 8, "fine": FINE, "exact": 32}[activations]

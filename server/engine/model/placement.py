"""Where a model runs and in which precision: from the names that flags take to torch's own values."""

from typing import Literal

import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
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

"""The variants that `fidelity` compares, by the names that its flag takes, and the settings of the command."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from offline.evaluation.peers.base import LLAMA_CPP, PEERS
from offline.settings import CommandSettings
from server.engine import Activations, Checkpoint, Quantization

REFERENCE = "reference"
"""The weights dequantised to fp32, which all variants are compared with."""
VARIANTS: dict[str, tuple[Quantization, Activations]] = {
    "none/exact": ("none", "exact"),
    "auto/exact": ("auto", "exact"),
    "auto/fine": ("auto", "fine"),
    "auto/int8": ("auto", "int8"),
    "int8/exact": ("int8", "exact"),
    "int8/fine": ("int8", "fine"),
    "int8/int8": ("int8", "int8"),
    "int4/exact": ("int4", "exact"),
    "int4/fine": ("int4", "fine"),
    "int4/int8": ("int4", "int8"),
}
"""Bits of the weights and what they are multiplied with, as the server's --quantization and --activations."""
KNOWN = (*VARIANTS, LLAMA_CPP)


class FidelitySettings(CommandSettings):
    """Compares the model at several numbers of bits with its weights in fp32: first choices, loss, speed."""

    variants: Annotated[list[str] | None, NoDecode] = Field(
        None,
        min_length=1,
        description=f"any of: {', '.join(KNOWN)}; without it, those that differ on this model, and llama-cpp if it can",
    )
    places: int = Field(5000, ge=1, description="places in prompts and answers at which next tokens are compared")
    max_new_tokens: int = Field(96, ge=1, description="tokens per answer at most")
    plot: Path | None = Field(None, description="draw loss over speed, a point per variant, to this .svg or .png")

    @field_validator("variants")
    @classmethod
    def check_variants(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if name not in KNOWN:
                raise ValueError(f"unknown variant {name!r}, known are {', '.join(KNOWN)}")
            if name == LLAMA_CPP and not PEERS[name].is_installed:
                raise ValueError(f"{name} needs its extra: pip install 'knn-ssd-server[{PEERS[name].extra}]'")
        return list(dict.fromkeys(value)) if value else value

    @field_validator("plot")
    @classmethod
    def check_plot(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix not in (".svg", ".png"):
            raise ValueError("must end in .svg or .png")
        return value


def differing_variants(own: Checkpoint) -> list[str]:
    """The variants to compare where nobody chose; `own` is the model at the bits of its file.

    Exact products with rounded weights are left out: they are there to tell two roundings apart.
    """
    names = [] if own.dtype == torch.float32 else ["none/exact"]
    if own.quantized:
        names += ["auto/exact", "auto/fine", "auto/int8"]
    names += ["int8/fine", "int4/fine"]
    if PEERS[LLAMA_CPP].is_installed and llamacpp_obstacle(own) is None:
        names.append(LLAMA_CPP)
    return names


def llamacpp_obstacle(own: Checkpoint) -> str | None:
    """Why llama.cpp cannot be compared on this model; None where it can."""
    if not own.path.is_file():
        return "llama-cpp reads GGUF files, and this model is a folder"
    return None if own.device.type == "cpu" else "llama-cpp runs on the CPU only; use --device cpu"

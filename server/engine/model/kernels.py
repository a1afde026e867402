"""Binds `native/decoder.cpp`, the forward on a CPU, built for several instruction sets.

The library is chosen by what the processor offers. Where there is none (another processor, a GPU,
a build without a compiler) the decoder's torch path does the same work.
"""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch

from server.engine.config import LANES, DecoderConfig

AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
BUILDS = (
    ("x86_64_v4_amx", AVX512 | {"avx512_bf16", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"}),
    ("x86_64_v4_bf16", AVX512 | {"avx512_bf16", "avx512_vnni"}),
    ("x86_64_v4_vnni", AVX512 | {"avx512_vnni"}),
    ("x86_64_v4", AVX512),
    ("x86_64_v3", frozenset({"avx2", "fma", "bmi2", "f16c"})),
)
"""Our builds, best first, and the processor flags that each needs."""


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(Structure):
    _fields_ = [
        *fields(c_int, "outputs inputs bits group zero input_bits"),
        *fields(c_void_p, "weights scales minima scale_units minimum_units bias"),
    ]


class Layer(Structure):
    _fields_ = [
        *fields(c_void_p, "attention_norm query_norm key_norm mlp_norm"),
        *fields(Matrix, "query key value output gate up down"),
    ]


class Edges(Structure):
    _fields_ = [*fields(c_void_p, "norm cos sin"), *fields(Matrix, "head embeddings")]


class Shape(Structure):
    _fields_ = [
        *fields(c_int, "num_layers hidden intermediate heads kv_heads head_dim is_bf16"),
        ("epsilon", c_float),
    ]


class Rows(Structure):
    _fields_ = [
        *fields(c_int, "count table_size num_chosen"),
        *fields(c_void_p, "ids positions slots tables keys values is_skipped hidden patch states"),
        ("is_reading", c_int),
    ]


class Choice(Structure):
    _fields_ = fields(c_void_p, "tokens probabilities logits")


class Sampling(Structure):
    _fields_ = [*fields(c_float, "temperature top_p min_p"), ("top_k", c_int), *fields(c_uint64, "seed position")]


class Chain(Structure):
    _fields_ = [
        ("stride", c_int),
        *fields(c_float, "confidence floor"),
        *fields(c_void_p, "limits drafted lengths samplings"),
    ]


def processor_flags() -> frozenset[str]:
    """What Linux says of the first processor; nothing where it cannot be asked."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def build() -> Path | None:
    """The best build that is here and that this processor runs, or None."""
    flags = processor_flags()
    folder = Path(__file__).parent / "native"
    fitting = (path for name, needed in BUILDS if needed <= flags for path in sorted(folder.glob(f"{name}.*so")))
    return next(fitting, None)


def kernel_build() -> str:
    """The name of the build that fits this processor, or `none`."""
    path = build()
    return path.name.partition(".")[0] if path else "none"


@cache
def library() -> ctypes.CDLL | None:
    path = build()
    if path is None:
        return None
    kernels = ctypes.CDLL(str(path))
    kernels.team_new.restype = c_void_p
    kernels.team_new.argtypes = [c_int]
    kernels.team_free.argtypes = [c_void_p]
    kernels.team_free.restype = None
    kernels.decoder_new.restype = c_void_p
    kernels.decoder_new.argtypes = [POINTER(Shape), POINTER(Layer), POINTER(Edges), c_void_p]
    kernels.decoder_forward.argtypes = [c_void_p, POINTER(Rows)]
    kernels.decoder_forward.restype = None
    kernels.decoder_pass.argtypes = [c_void_p, POINTER(Rows), c_int, c_int, c_void_p]
    kernels.decoder_pass.restype = None
    kernels.decoder_logits.argtypes = [c_void_p, POINTER(Matrix), c_int, c_void_p, c_void_p]
    kernels.decoder_logits.restype = None
    kernels.decoder_choose.argtypes = [
        c_void_p,
        POINTER(Rows),
        POINTER(Matrix),
        c_void_p,
        c_void_p,
        POINTER(Choice),
    ]
    kernels.decoder_choose.restype = None
    kernels.decoder_draft.argtypes = [
        c_void_p,
        POINTER(Rows),
        POINTER(Matrix),
        c_void_p,
        POINTER(Choice),
        POINTER(Chain),
    ]
    kernels.decoder_draft.restype = None
    kernels.logits_sample.argtypes = [c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p]
    kernels.logits_sample.restype = None
    kernels.decoder_free.argtypes = [c_void_p]
    kernels.decoder_free.restype = None
    kernels.matrix_copy_outputs.argtypes = [POINTER(Matrix), c_int, c_void_p, POINTER(Matrix), c_int]
    kernels.matrix_copy_outputs.restype = None
    return kernels


def is_supported(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: on a CPU, in fp32 or bf16, in whole vectors."""
    is_whole = config.intermediate_size % LANES == 0 and config.head_dim % LANES == 0 and config.hidden_size % 2 == 0
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and is_whole and library() is not None

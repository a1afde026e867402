"""Binds `native/decoder.cpp`, the forward on a CPU, built for several instruction sets.

The library is chosen by what the processor offers. Where there is none (another processor, a GPU,
a build without a compiler) the decoder's torch path does the same work.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from server.engine.config import LANES, DecoderConfig
from server.engine.kvcache.slots import KVCache, TokenBatch
from server.engine.model.panels import Panels
from server.engine.types import EMPTY_MASK, SkipMask

AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
BUILDS = (
    ("x86_64_v4_bf16", AVX512 | {"avx512_bf16", "avx512_vnni"}),
    ("x86_64_v4_vnni", AVX512 | {"avx512_vnni"}),
    ("x86_64_v4", AVX512),
    ("x86_64_v3", frozenset({"avx2", "fma", "bmi2"})),
)
"""Our builds, best first, and the processor flags that each needs."""


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(Structure):
    _fields_ = [
        *fields(c_int, "outputs inputs bits group zero rounds_inputs"),
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
        *fields(c_int, "num_layers hidden intermediate heads kv_heads head_dim vocabulary num_threads is_bf16"),
        ("epsilon", c_float),
    ]


class Rows(Structure):
    _fields_ = [
        *fields(c_int, "count num_slots max_length"),
        *fields(c_void_p, "ids positions slots keys values is_skipped hidden"),
    ]


class Greedy(Structure):
    _fields_ = fields(c_void_p, "tokens probabilities logits")


class Chain(Structure):
    _fields_ = [("stride", c_int), ("confidence", c_float), *fields(c_void_p, "limits drafted lengths")]


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
    kernels.decoder_new.restype = c_void_p
    kernels.decoder_new.argtypes = [POINTER(Shape), POINTER(Layer), POINTER(Edges)]
    kernels.decoder_forward.argtypes = [c_void_p, POINTER(Rows)]
    kernels.decoder_forward.restype = None
    kernels.decoder_logits.argtypes = [c_void_p, c_int, c_void_p, c_void_p]
    kernels.decoder_logits.restype = None
    kernels.decoder_greedy.argtypes = [c_void_p, POINTER(Rows), POINTER(Greedy)]
    kernels.decoder_greedy.restype = None
    kernels.decoder_draft.argtypes = [c_void_p, POINTER(Rows), POINTER(Greedy), POINTER(Chain)]
    kernels.decoder_draft.restype = None
    kernels.decoder_free.argtypes = [c_void_p]
    kernels.decoder_free.restype = None
    return kernels


def is_supported(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: on a CPU, in fp32 or bf16, in whole vectors."""
    is_whole = config.intermediate_size % LANES == 0 and config.head_dim % LANES == 0 and config.hidden_size % 2 == 0
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and is_whole and library() is not None


Parts = Mapping[str, Panels | Tensor | None]
"""Matrices and vectors by the names of the kernels' fields, None where the model has no such part."""


class NativeDecoder:
    """The C++ decoder over packed weights; keeps every tensor that it points to alive."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Parts],
        edges: Parts,
        cache_dtype: torch.dtype,
        rounds_inputs: bool,
        num_threads: int,
    ) -> None:
        """`rounds_inputs`: codes of few bits are multiplied with activations of 8 bits, else with fp32."""
        kernels = library()
        assert kernels is not None
        self.handle: int | None = None
        self.kernels = kernels
        self.config = config
        self.parts = [edges, *layers]
        shape = Shape(
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.vocabulary_size,
            num_threads,
            int(cache_dtype == torch.bfloat16),
            config.norm_epsilon,
        )
        pointers = (Layer * len(layers))(*(Layer(**pointed(layer, rounds_inputs)) for layer in layers))
        self.handle = kernels.decoder_new(byref(shape), pointers, byref(Edges(**pointed(edges, rounds_inputs))))
        self.masks: dict[SkipMask, array[int]] = {}
        self.scratch = Scratch(0, config)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights; a tensor that two parts share counts once."""
        return sum(
            {id(part): part.nbytes for parts in self.parts for part in parts.values() if part is not None}.values()
        )

    def __del__(self) -> None:
        if self.handle is not None:
            self.kernels.decoder_free(self.handle)

    def forward(self, batch: TokenBatch, cache: KVCache, mask: SkipMask) -> Tensor:
        """Hidden states [tokens, hidden_size] in fp32, as `Decoder.forward`."""
        hidden = torch.empty(batch.num_tokens, self.config.hidden_size)
        flat = flattened(batch)
        self.kernels.decoder_forward(self.handle, byref(self.rows(flat, batch.num_tokens, hidden, cache, mask)))
        return hidden

    def greedy(self, batch: TokenBatch, cache: KVCache) -> list[int]:
        """The full model's greedy token after each of the batch's."""
        flat, scratch = flattened(batch), self.scratch_of(batch.num_tokens)
        rows = self.rows(flat, batch.num_tokens, scratch.hidden, cache, EMPTY_MASK)
        self.kernels.decoder_greedy(self.handle, byref(rows), byref(scratch.sure))
        return scratch.tokens[: batch.num_tokens].tolist()

    def draft(
        self, batch: TokenBatch, cache: KVCache, mask: SkipMask, limits: list[int], confidence: float
    ) -> list[list[int]]:
        """Greedy chains after the batch's single tokens, as `SkipDrafter` describes them."""
        flat, scratch = flattened(batch), self.scratch_of(batch.num_tokens)
        stride = max(limits)
        most, drafted = array("i", limits), array("i", bytes(4 * stride * len(limits)))
        lengths = array("i", bytes(4 * len(limits)))
        chain = Chain(stride, confidence, *(values.buffer_info()[0] for values in (most, drafted, lengths)))
        rows = self.rows(flat, batch.num_tokens, scratch.hidden, cache, mask)
        self.kernels.decoder_draft(self.handle, byref(rows), byref(scratch.unsure), byref(chain))
        return [drafted[i * stride : i * stride + length].tolist() for i, length in enumerate(lengths)]

    def rows(self, flat: "array[int]", count: int, hidden: Tensor, cache: KVCache, mask: SkipMask) -> Rows:
        """`flat` has `count` ids, positions and slots; the caller keeps it and `hidden` alive through the call."""
        first = flat.buffer_info()[0]
        return Rows(
            count,
            cache.num_slots,
            cache.max_length,
            first,
            first + count * flat.itemsize,
            first + 2 * count * flat.itemsize,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            self.skipped(mask),
            hidden.data_ptr(),
        )

    def scratch_of(self, num_tokens: int) -> "Scratch":
        if num_tokens > self.scratch.capacity:
            self.scratch = Scratch(num_tokens, self.config)
        return self.scratch

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary_size] of hidden states in fp32."""
        hidden = hidden.float().contiguous()
        out = torch.empty(hidden.shape[0], self.config.vocabulary_size)
        self.kernels.decoder_logits(self.handle, hidden.shape[0], hidden.data_ptr(), out.data_ptr())
        return out

    def skipped(self, mask: SkipMask) -> int:
        """Address of a byte for each sub-layer in turn, 1 where the mask leaves it out."""
        if mask not in self.masks:
            layers = range(self.config.num_layers)
            self.masks[mask] = array("B", [i in part for i in layers for part in (mask.attention, mask.mlp)])
        return self.masks[mask].buffer_info()[0]


class Scratch:
    """What greedy passes of up to `capacity` tokens write; reused by the next one."""

    def __init__(self, capacity: int, config: DecoderConfig) -> None:
        self.capacity = capacity
        self.hidden = torch.empty(capacity, config.hidden_size)
        self.logits = torch.empty(capacity, config.vocabulary_size)
        self.tokens = array("i", bytes(4 * capacity))
        self.probabilities = array("f", bytes(4 * capacity))
        tokens, logits = self.tokens.buffer_info()[0], self.logits.data_ptr()
        self.sure = Greedy(tokens, None, logits)
        self.unsure = Greedy(tokens, self.probabilities.buffer_info()[0], logits)


def flattened(batch: TokenBatch) -> "array[int]":
    """Ids, positions and slots of all tokens, one after the other."""
    return array("i", [value for values in batch.flat for value in values])


def pointed(parts: Parts, rounds_inputs: bool) -> dict[str, Matrix | int | None]:
    """What the kernels' structs have for these parts."""
    return {
        name: matrix(part, rounds_inputs) if isinstance(part, Panels) else address(part) for name, part in parts.items()
    }


def matrix(panels: Panels, rounds_inputs: bool) -> Matrix:
    numbers = panels.outputs, panels.inputs, panels.bits, panels.group, panels.zero, int(rounds_inputs)
    tensors = panels.weights, panels.scales, panels.minima, panels.scale_units, panels.minimum_units, panels.bias
    return Matrix(*numbers, *map(address, tensors))


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

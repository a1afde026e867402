"""The weights of a GGUF file under their Hugging Face names, their rows in Hugging Face's order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.model.fingerprint import digest_tensor
from server.engine.model.gguf.codes import READERS, codes_of
from server.engine.model.gguf.file import GgufFile, GgufTensor
from server.engine.model.quantization.codes import Codes
from server.engine.model.weights import CheckpointError, StoredWeights

FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
QUANTISED = (
    "Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS IQ2_XXS "
    "TQ2_0 TQ1_0 IQ1_M IQ1_S"
)
SUPPORTED = frozenset(FLOATS) | {GGMLQuantizationType[name] for name in QUANTISED.split()}
CHUNK = 1 << 17
"""Values dequantised at a time: what the processor's cache holds, numpy being twice as slow beyond it."""

EDGES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NOT_WEIGHTS = frozenset({"rope_freqs.weight"})


@dataclass(frozen=True, eq=False)
class GgufWeight:
    """A matrix as its file has it, in memory that is read when it is asked for."""

    blocks: NDArray[np.uint8]
    type: GGMLQuantizationType
    shape: torch.Size

    @property
    def kind(self) -> str:
        return self.type.name

    def dense(self) -> Tensor:
        return dequantize(self.blocks, self.type, self.shape, torch.float32)

    def codes(self) -> Codes:
        return codes_of(self.blocks, self.type)


def read_gguf_weights(
    file: GgufFile, config: DecoderConfig, dtype: torch.dtype, keeps_bits: bool = False
) -> StoredWeights:
    """All weights, and their digests as they are on disk, which do not depend on `dtype`.

    `keeps_bits`: matrices of the types of `codes.READERS` stay as they are, and vectors in fp32.
    """
    check_types(file)
    stored = StoredWeights()
    with one_thread():
        for name, tensor in file.tensors.items():
            if name in NOT_WEIGHTS:
                continue
            full_name = weight_name(file, name)
            blocks = read_blocks(file, name, config)
            stored.digests[full_name] = digest_tensor(as_stored(tensor, blocks))
            if keeps_bits and tensor.type in READERS and len(tensor.shape) == 2:
                stored.quantized[full_name] = GgufWeight(blocks, tensor.type, torch.Size(tensor.shape))
            else:
                own = torch.float32 if keeps_bits and len(tensor.shape) == 1 else dtype
                stored.weights[full_name] = dequantize(blocks, tensor.type, tensor.shape, own)
    return stored


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: numpy works on one, and torch's others would wait for it at each chunk, spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_types(file: GgufFile) -> None:
    for name, tensor in file.tensors.items():
        if tensor.type not in SUPPORTED:
            raise CheckpointError(
                f"{file.path}: {name} has the type {tensor.type.name}, which is not supported; "
                f"supported: {', '.join(kind.name for kind in sorted(SUPPORTED))}"
            )


def weight_name(file: GgufFile, name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    A tensor that the decoder has no place for is refused: without it, the model would be another one.
    """
    stem, _, ending = name.rpartition(".")
    layer, _, part = stem.removeprefix("blk.").partition(".")
    if ending in ("weight", "bias"):
        if stem in EDGES:
            return f"{EDGES[stem]}.{ending}"
        if stem.startswith("blk.") and part in LAYER_PARTS and layer.isdecimal():
            return f"model.layers.{layer}.{LAYER_PARTS[part]}.{ending}"
    raise CheckpointError(f"{file.path} has the tensor {name}, which a supported model does not have")


def read_blocks(file: GgufFile, name: str, config: DecoderConfig) -> NDArray[np.uint8]:
    """A tensor's blocks [rows, bytes of a row], rows in Hugging Face's order.

    llama.cpp rotates neighbours in the queries and keys of its `llama`, Hugging Face rotates halves: there, rows of
    a head change places. A block lies within a row, so that they do so without being dequantised.
    """
    blocks = file.tensors[name].blocks
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or file.metadata["general.architecture"] != "llama":
        return blocks
    if name.endswith(".bias"):
        blocks = blocks.reshape(file.tensors[name].shape[0], -1)
    if blocks.shape[0] != heads * config.head_dim:
        return blocks  # A wrong shape, which `check_weights` will name.
    return blocks.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(file.tensors[name].blocks.shape)


def as_stored(tensor: GgufTensor, blocks: NDArray[np.uint8]) -> Tensor:
    """The numbers as they are on disk; of a quantised tensor, its bytes."""
    raw = torch.from_numpy(blocks)
    return raw.view(FLOATS[tensor.type]).view(tensor.shape) if tensor.type in FLOATS else raw


def dequantize(
    blocks: NDArray[np.uint8], kind: GGMLQuantizationType, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The values [*shape] of blocks in `dtype`, worked out in fp32; at most `CHUNK` of them are held twice."""
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    weight = torch.empty(shape, dtype=dtype)
    values, raw = weight.view(-1), blocks.reshape(-1)
    for start in range(0, values.numel(), CHUNK):
        first = start // per_block * block_bytes
        chunk = gguf.dequantize(raw[first : first + CHUNK // per_block * block_bytes], kind)
        values[start : start + CHUNK] = torch.from_numpy(chunk)
    return weight


def own_dtype(file: GgufFile, device: torch.device) -> torch.dtype:
    """The dtype in which a file is served that nobody chose one for; its matrices decide.

    Quantised: bfloat16, whose rounding is far finer than the quantisation's steps. BF16 and F32: the same. F16 stays
    float16 on a GPU; a CPU's kernels have no float16, and get float32, which holds the same values in twice the memory.
    """
    kinds = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if kinds - FLOATS.keys() or kinds == {GGMLQuantizationType.BF16}:
        return torch.bfloat16
    if kinds == {GGMLQuantizationType.F16} and device.type != "cpu":
        return torch.float16
    return torch.float32

"""llama.cpp as a peer: the same weights as a GGUF file, decoded greedily through its C interface.

Token ids go in and come out, so the file carries no tokenizer. Needs the extra `llama-cpp`.
"""

import ctypes
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline.evaluation.measure import Answer, Job, Runner, end_ids
from offline.loaded_model import LoadedModel
from offline.settings import EvaluationSettings, SettingsMistake
from server.engine import Checkpoint, DecoderConfig

SLOW_BYTES = 2**30
"""A file of this size takes seconds to write."""
ERROR_LEVEL = 4
"""`GGML_LOG_LEVEL_ERROR` of ggml.h."""
SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)
"""The library goes on calling what it was given last, so that must never be collected."""
FILE_TYPES = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    torch.float16: gguf.GGMLQuantizationType.F16,
}


def llamacpp_runner(loaded: LoadedModel, settings: EvaluationSettings, longest: int) -> Runner:
    """Answers by llama.cpp with as many threads: a GGUF file at its own bits, other models in the engine's dtype.

    Raises `SettingsMistake` where it cannot.
    """
    if settings.temperature > 0 or settings.batch_size > 1 or loaded.checkpoint.device.type != "cpu":
        raise SettingsMistake("--methods: llama-cpp answers greedily, one prompt at a time, on the CPU only")
    length = longest + settings.max_new_tokens
    if loaded.checkpoint.path.is_file():
        model = Model(loaded.checkpoint.path, length, loaded.checkpoint.dtype)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, loaded, rope_theta(loaded.checkpoint))
            model = Model(path, length, loaded.checkpoint.dtype)
    eos_ids = end_ids(loaded, settings)

    def answer(job: Job) -> Answer:
        tokens = upto(model.tokens(job.ids), settings.max_new_tokens, eos_ids)
        first = next(tokens)
        prefilled_at = time.perf_counter()
        ids = [first, *tokens]
        return Answer(ids, time.perf_counter() - prefilled_at)

    return lambda jobs: [answer(job) for job in jobs]


def upto(tokens: Iterator[int], limit: int, eos_ids: frozenset[int]) -> Iterator[int]:
    """The first `limit` tokens, or those up to the first end token."""
    for _, token in zip(range(limit), tokens, strict=False):
        yield token
        if token in eos_ids:
            return


class Model:
    """A model and its context; both live as long as the process, as the C library's own threads do."""

    def __init__(self, path: Path, length: int, dtype: torch.dtype) -> None:
        errors: list[str] = []
        listener = llama_cpp.llama_log_callback(lambda level, text, _: listen(errors, level, text))
        llama_cpp.llama_log_set(listener, None)
        loading = llama_cpp.llama_model_default_params()
        loading.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
        running = llama_cpp.llama_context_default_params()
        running.n_ctx = running.n_batch = length
        running.n_threads = running.n_threads_batch = torch.get_num_threads()
        if dtype == torch.float32:
            # Keys and values are kept in half precision otherwise.
            running.type_k = running.type_v = int(gguf.GGMLQuantizationType.F32)
        self.context = llama_cpp.llama_init_from_model(self.model, running) if self.model else None
        llama_cpp.llama_log_set(SILENCE, None)
        if not self.context:
            raise SettingsMistake(f"llama-cpp cannot load this model: {' '.join(errors[:1])}")
        self.greedy = llama_cpp.llama_sampler_init_greedy()

    def tokens(self, prompt: list[int]) -> Iterator[int]:
        """The greedy continuation, without end."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        next_id = (ctypes.c_int32 * 1)()
        while True:
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, len(ids))):
                raise RuntimeError("llama_decode failed")
            next_id[0] = llama_cpp.llama_sampler_sample(self.greedy, self.context, -1)
            yield next_id[0]
            ids = next_id


def listen(errors: list[str], level: int, text: bytes) -> None:
    """Keeps the library's errors and drops what else it says."""
    if level == ERROR_LEVEL:
        errors.append(" ".join(text.decode(errors="replace").split()))


def rope_theta(checkpoint: Checkpoint) -> float:
    """The base of plain RoPE; scaled kinds are not converted."""
    parameters = checkpoint.described.rope_parameters
    if parameters["rope_type"] != "default":
        raise SettingsMistake(f"--methods: llama-cpp runs models with plain RoPE here, not {parameters['rope_type']!r}")
    return float(parameters["rope_theta"])


def write_gguf(path: Path, loaded: LoadedModel, theta: float) -> None:
    """Writes the checkpoint's weights under GGUF's names; matrices in its dtype, vectors in fp32."""
    config, weights = loaded.checkpoint.config, loaded.checkpoint.dense_weights()
    architecture = architecture_of(weights)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    describe(writer, config, theta)
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name, weight in weights.items():
        if name == "lm_head.weight" and weight is weights["model.embed_tokens.weight"]:
            continue
        stem, _, ending = name.rpartition(".")
        values = interleaved(name, weight, config) if architecture is gguf.MODEL_ARCH.LLAMA else weight
        kind = FILE_TYPES[loaded.checkpoint.dtype] if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", raw(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=sum(weight.nbytes for weight in weights.values()) > SLOW_BYTES)
    writer.close()


def describe(writer: gguf.GGUFWriter, config: DecoderConfig, theta: float) -> None:
    """Writes the shape of the model under the keys that llama.cpp reads it from."""
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary_size)
    writer.add_tokenizer_model("none")


def architecture_of(weights: dict[str, Tensor]) -> gguf.MODEL_ARCH:
    """Which of llama.cpp's models has these parts."""
    if "model.layers.0.self_attn.q_norm.weight" in weights:
        return gguf.MODEL_ARCH.QWEN3
    return gguf.MODEL_ARCH.QWEN2 if "model.layers.0.self_attn.q_proj.bias" in weights else gguf.MODEL_ARCH.LLAMA


def interleaved(name: str, weight: Tensor, config: DecoderConfig) -> Tensor:
    """llama.cpp rotates neighbours in Llama's queries and keys, Hugging Face rotates halves: rows change places."""
    num_heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if num_heads is None:
        return weight
    return weight.view(num_heads, 2, config.head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)


def raw(weight: Tensor, kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """The numbers as the file keeps them; numpy has no bf16, so those go as pairs of bytes."""
    if kind == gguf.GGMLQuantizationType.BF16:
        return weight.contiguous().view(torch.uint8).numpy()
    return weight.to(torch.float16 if kind == gguf.GGMLQuantizationType.F16 else torch.float32).numpy()

"""Reads a model from a Hugging Face folder or a GGUF file.

Config, tokenizer and generation defaults are transformers' in both cases, weights come from `weights` and `gguf`.
Remote code is never run unless asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from server.engine.config import DecoderConfig
from server.engine.model.fingerprint import fingerprint
from server.engine.model.footprint import Outline
from server.engine.model.gguf.codes import MEMORY_BITS
from server.engine.model.gguf.config import config_fields, rope_divisors, sampling_defaults
from server.engine.model.gguf.file import GgufFile, open_gguf
from server.engine.model.gguf.tokenizer import GgufVocabulary, build_tokenizer, end_ids, tokenizer_settings
from server.engine.model.gguf.weights import NOT_WEIGHTS, own_dtype, read_gguf_weights, weight_name
from server.engine.model.hub import commit_of, local_model
from server.engine.model.placement import ROUNDED_BITS, Quantization
from server.engine.model.quantization.codes import QuantizedWeight
from server.engine.model.quantization.rounding import Bits
from server.engine.model.rope import longest_context, rope_tables
from server.engine.model.weights import CheckpointError, StoredWeights, read_weights
from server.engine.types import SamplingParams

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights under their Hugging Face names, plus RoPE tables `rope` [2, max_length, head_dim].

    Matrices of few bits are in `quantized`, all other tensors in `weights`; both are in the CPU's memory, so that a GPU
    has each weight once, when a decoder puts it there.

    `path` is the folder or GGUF file that it was read from, `revision` its commit if that is one of the hub's, and
    `described` what transformers would make it of.
    """

    name: str
    path: Path
    described: PreTrainedConfig
    config: DecoderConfig
    weights: dict[str, Tensor]
    rope: Tensor
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    defaults: dict[str, float | int]
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        return commit_of(self.path)

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are drawn where nobody says: as its authors recommend, else from its whole distribution."""
        named = self.defaults
        return SamplingParams(named.get("temperature", 1.0), named.get("top_p", 1.0), int(named.get("top_k", 0)))

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embeddings."""
        head, embeddings = (
            self.quantized.get(name, self.weights.get(name)) for name in ("lm_head.weight", "model.embed_tokens.weight")
        )
        return head is embeddings

    def dense(self, name: str) -> Tensor:
        """A weight in the checkpoint's dtype and on its device, dequantised where it is of few bits."""
        weight = self.quantized[name].dense() if name in self.quantized else self.weights[name]
        return weight.to(self.device, self.dtype)

    def dense_weights(self) -> dict[str, Tensor]:
        """All weights in the checkpoint's dtype; tied ones are one tensor."""
        dense = {name: self.dense(name) for name in [*self.weights, *self.quantized]}
        if self.is_tied:
            dense["lm_head.weight"] = dense["model.embed_tokens.weight"]
        return dense

    def rounded(self, bits: Bits) -> "Checkpoint":
        """The same model, every matrix that can be rounded to so many bits."""
        stored = StoredWeights(dict(self.weights), dict(self.quantized))
        stored.round(bits)
        if self.is_tied:
            stored.tie_head()
        return replace(self, weights=stored.weights, quantized=stored.quantized)

    def forget_weights(self) -> None:
        """Drops the weights, which a decoder has its own packed copies of."""
        self.weights.clear()
        self.quantized.clear()


@dataclass(frozen=True)
class Description:
    """All of a model but its weights; RoPE's frequencies [head_dim / 2] are divided by `rope_divisors`, if any."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    defaults: dict[str, float | int]
    dtype: torch.dtype
    rope_divisors: Tensor | None = None


def load_checkpoint(
    name_or_path: str,
    dtype: torch.dtype | None,
    device: torch.device,
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
    revision: str | None = None,
    admit: Callable[[Outline], None] = lambda outline: None,
) -> Checkpoint:
    """Loads a folder, a GGUF file or either of the hub's, by the names that `hub.local_model` takes.

    dtype None keeps the checkpoint's own. A quantised file's is bfloat16, an F16 file's float32 on a CPU and float16
    elsewhere (`gguf.weights.own_dtype` says why). `quantization` auto keeps the weights of a quantised file at their
    bits, none dequantises them, and int8 or int4 rounds those of any model. `revision` names a hub model's commit,
    branch or tag. `admit` hears of its size before any weight is read, and may
    raise what it likes.

    Raises `CheckpointError` where it is missing, incomplete or of an unsupported architecture.
    """
    path = local_model(name_or_path, revision)
    file = open_gguf(path) if path.is_file() else None
    described = describe_file(file, device) if file else describe_folder(path, name_or_path, trust_remote_code)
    with reading(f"the model {name_or_path!r}"):
        config = read_shape(described.config)
        rope = rope_tables(described.config, config.max_length, described.rope_divisors)
    if rope.shape[-1] != config.head_dim:
        raise CheckpointError(f"{path}: RoPE turns {rope.shape[-1]} numbers of a head's {config.head_dim}, not all")
    used_dtype = dtype or described.dtype
    admit(outline_of(config, described, file, used_dtype, device, quantization))
    if file:
        stored = read_gguf_weights(file, config, used_dtype, keeps_bits=quantization != "none")
    else:
        stored = read_weights(path, used_dtype)
    if quantization in ROUNDED_BITS:
        stored.round(ROUNDED_BITS[quantization])
    if described.config.tie_word_embeddings:
        stored.tie_head()
    stored.check(config, path)
    return Checkpoint(
        name=name_or_path,
        path=path,
        described=described.config,
        config=config,
        weights=stored.weights,
        quantized=stored.quantized,
        rope=rope.to(device),
        tokenizer=described.tokenizer,
        eos_ids=described.eos_ids,
        defaults=described.defaults,
        fingerprint=fingerprint(vars(config), stored.digests),
        dtype=used_dtype,
        device=device,
    )


def outline_of(
    config: DecoderConfig,
    described: Description,
    file: GgufFile | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
) -> Outline:
    """A file's weights keep their bits unless they are dequantised or rounded; a folder's are read out of its files."""
    keeps_bits = file is not None and quantization != "none"
    named = (
        {weight_name(file, name): t.type for name, t in file.tensors.items() if name not in NOT_WEIGHTS} if file else {}
    )
    return Outline(
        config,
        dtype,
        device,
        is_tied=bool(described.config.tie_word_embeddings),
        is_converted=not keeps_bits and (file is not None or dtype != described.dtype),
        few_bits={name: MEMORY_BITS[kind] for name, kind in named.items() if keeps_bits and kind in MEMORY_BITS},
        rounded=ROUNDED_BITS.get(quantization),
    )


def describe_folder(folder: Path, name: str, trust_remote_code: bool) -> Description:
    with reading(f"the model {name!r}"):
        config = read_config(folder, name, trust_remote_code)
        eos_ids, defaults = read_generation(folder, config)
    with reading(f"the tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return Description(config, tokenizer, eos_ids, defaults, config.dtype or torch.float32)


def describe_file(file: GgufFile, device: torch.device) -> Description:
    with reading(f"the model {str(file.path)!r}"):
        config = AutoConfig.for_model(**config_fields(file))
        divisors = rope_divisors(file)
        defaults = sampling_defaults(file)
    with reading(f"the tokenizer of {str(file.path)!r}"):
        vocabulary = GgufVocabulary(file)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=build_tokenizer(vocabulary),
            clean_up_tokenization_spaces=False,
            model_max_length=config.max_position_embeddings,
            **tokenizer_settings(vocabulary),
        )
    return Description(config, tokenizer, end_ids(vocabulary), defaults, own_dtype(file, device), divisors)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """transformers raises what it likes on files it cannot use; a user gets one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join((str(error) or repr(error)).split())
        raise CheckpointError(f"cannot read {what}: {reason}") from error


def read_config(folder: Path, name: str, trust_remote_code: bool) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture not in SUPPORTED:
        raise CheckpointError(f"{name!r} is {architecture}, which is not supported; supported: {', '.join(SUPPORTED)}")
    if config.hidden_act != "silu":
        raise CheckpointError(f"{name!r} has the activation {config.hidden_act!r}; only 'silu' is supported")
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"{name!r} is quantised, which is not supported; use its unquantised weights")
    return config


def read_shape(config: PreTrainedConfig) -> DecoderConfig:
    return DecoderConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary_size=config.vocab_size,
        max_length=longest_context(config),
        norm_epsilon=config.rms_norm_eps,
    )


def read_generation(folder: Path, config: PreTrainedConfig) -> tuple[frozenset[int], dict[str, float | int]]:
    """End-of-sequence ids, and the sampling defaults that the checkpoint's authors recommend."""
    generation = GenerationConfig.from_model_config(config)
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder)
    eos = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    eos_ids = frozenset(int(i) for i in (eos if isinstance(eos, list) else [eos] if eos is not None else []))
    if not generation.do_sample:
        return eos_ids, {}
    named = {name: getattr(generation, name) for name in ("temperature", "top_p", "top_k")}
    return eos_ids, {name: float(value) for name, value in named.items() if value is not None}

"""Reads a Hugging Face checkpoint; every call into transformers' internals is here.

Config, tokenizer, generation defaults and RoPE come from transformers, weights from `weights`.
Remote code is never run unless asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.engine.config import DecoderConfig
from server.engine.model.fingerprint import fingerprint
from server.engine.model.weights import CheckpointError, check_weights, read_weights

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not depend on the length; others equal plain RoPE up to their original length."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights under their Hugging Face names, plus RoPE tables `rope` [2, max_length, head_dim]."""

    name: str
    config: DecoderConfig
    weights: dict[str, Tensor]
    rope: Tensor
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    defaults: dict[str, float | int]
    fingerprint: str
    dtype: torch.dtype
    device: torch.device


def load_checkpoint(
    name_or_path: str, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool = False
) -> Checkpoint:
    """Loads a local folder or hub name; dtype None keeps the checkpoint's own.

    Raises `CheckpointError` where it is missing, incomplete or of an unsupported architecture.
    """
    folder = local_folder(name_or_path)
    with reading(f"the model {name_or_path!r}"):
        config = read_config(name_or_path, trust_remote_code)
        decoder_config = read_shape(config)
        eos_ids, defaults = read_generation(folder, config)
        rope = rope_tables(config, decoder_config.max_length)
    with reading(f"the tokenizer of {name_or_path!r}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    used_dtype: torch.dtype = dtype or config.dtype or torch.float32
    weights, digests = read_weights(folder, used_dtype, device)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    check_weights(decoder_config, weights, folder)
    return Checkpoint(
        name=name_or_path,
        config=decoder_config,
        weights=weights,
        rope=rope.to(device),
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        defaults=defaults,
        fingerprint=fingerprint(vars(decoder_config), digests),
        dtype=used_dtype,
        device=device,
    )


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


def local_folder(name_or_path: str) -> Path:
    """The folder itself, or the hub's repository in the local hub cache, downloaded where it is not there yet."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if name_or_path.startswith(("/", ".", "~")):
        raise CheckpointError(f"there is no model folder {name_or_path!r}")
    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(snapshot_download(name_or_path, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name_or_path!r} is neither a folder here nor a model that can be downloaded: {reason}"
        ) from error


def read_config(name_or_path: str, trust_remote_code: bool) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture not in SUPPORTED:
        raise CheckpointError(
            f"{name_or_path!r} is {architecture}, which is not supported; supported: {', '.join(SUPPORTED)}"
        )
    if config.hidden_act != "silu":
        raise CheckpointError(f"{name_or_path!r} has the activation {config.hidden_act!r}; only 'silu' is supported")
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"{name_or_path!r} is quantised, which is not supported; use its unquantised weights")
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


def longest_context(config: PreTrainedConfig) -> int:
    """The context within which full attention and fixed RoPE frequencies are the model's own."""
    limit = int(config.max_position_embeddings)
    if getattr(config, "sliding_window", None):
        limit = min(limit, int(config.sliding_window))
    if config.rope_parameters["rope_type"] not in STATIC_ROPE:
        limit = min(limit, int(config.rope_parameters.get("original_max_position_embeddings") or limit))
    return limit


def rope_tables(config: PreTrainedConfig, length: int) -> Tensor:
    """cos and signed sin [2, length, head_dim]; rotating is then x * cos + swapped_halves(x) * sin."""
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    half = sin.shape[-1] // 2
    return torch.stack((cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)))


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

"""Reads a Hugging Face checkpoint into plain weights; every call into transformers' internals is here.

Config, tokenizer, generation defaults and RoPE come from transformers, weights from safetensors
files. Remote code is never run unless asked for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.engine.artifact import fingerprint

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not depend on the length; others equal plain RoPE up to their original length."""


class CheckpointError(Exception):
    """The folder or name cannot be served; the message is one sentence."""


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers of a Llama-shaped decoder; `max_length` is the longest context it may attend to."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary_size: int
    max_length: int
    norm_epsilon: float

    @property
    def num_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


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
    config = read_config(name_or_path, trust_remote_code)
    folder = local_folder(name_or_path)
    used_dtype: torch.dtype = dtype or config.dtype or torch.float32
    weights = read_weights(folder, used_dtype, device, tied=config.tie_word_embeddings)
    decoder_config = read_shape(config)
    check_weights(decoder_config, weights, folder)
    eos_ids, defaults = read_generation(folder, config)
    return Checkpoint(
        name=name_or_path,
        config=decoder_config,
        weights=weights,
        rope=rope_tables(config, decoder_config.max_length).to(device),
        tokenizer=read_tokenizer(name_or_path, trust_remote_code),
        eos_ids=eos_ids,
        defaults=defaults,
        fingerprint=fingerprint(vars(decoder_config), weights),
        dtype=used_dtype,
        device=device,
    )


def read_config(name_or_path: str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot read the model {name_or_path!r}: {reason}") from error
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture not in SUPPORTED:
        raise CheckpointError(
            f"{name_or_path!r} is {architecture}, which is not supported; supported: {', '.join(SUPPORTED)}"
        )
    if config.hidden_act != "silu":
        raise CheckpointError(f"{name_or_path!r} has the activation {config.hidden_act!r}; only 'silu' is supported")
    return config


def local_folder(name_or_path: str) -> Path:
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(
            snapshot_download(name_or_path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
        )
    except Exception as error:
        raise CheckpointError(f"cannot download {name_or_path!r}: {str(error).splitlines()[0]}") from error


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


def read_weights(folder: Path, dtype: torch.dtype, device: torch.device, tied: bool) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files; a tied head appears as `lm_head.weight` too."""
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    )
    weights: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} has no {name}: only safetensors checkpoints are supported")
        try:
            with safe_open(folder / name, framework="pt") as file:
                weights |= {key: file.get_tensor(key).to(device, dtype) for key in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
    if tied and "model.embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def check_weights(config: DecoderConfig, weights: dict[str, Tensor], folder: Path) -> None:
    parts = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo")]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    needed = [f"model.layers.{i}.{part}.weight" for i in range(config.num_layers) for part in parts]
    needed += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")


def read_tokenizer(name_or_path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot read the tokenizer of {name_or_path!r}: {reason}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def read_generation(folder: Path, config: PreTrainedConfig) -> tuple[frozenset[int], dict[str, float | int]]:
    """End-of-sequence ids, and the sampling defaults that the checkpoint's authors recommend."""
    generation = GenerationConfig.from_model_config(config)
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder)
    eos = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    eos_ids = frozenset(eos if isinstance(eos, list) else [eos] if eos is not None else [])
    if not generation.do_sample:
        return eos_ids, {}
    named = {name: getattr(generation, name) for name in ("temperature", "top_p", "top_k")}
    return eos_ids, {name: value for name, value in named.items() if value is not None}

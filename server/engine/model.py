"""The decoder: one forward over attention and MLP sub-layers, some of which a mask leaves out.

The full model is the empty mask. The mask is an argument, so that requests with different masks
share one model at the same time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.cache import KVCache, TokenBatch
from server.engine.checkpoint import Checkpoint, DecoderConfig
from server.engine.linear import Linear
from server.engine.types import FULL, SkipMask


@dataclass(frozen=True)
class Norm:
    """RMSNorm with its weight; used on hidden states and, in Qwen3, on each query and key head."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Attention:
    """The attention sub-layer: norm, fused q/k/v projection, RoPE, cache, output projection."""

    def __init__(self, layer: int, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
        prefix = f"model.layers.{layer}."
        self.layer = layer
        self.config = config
        self.norm = Norm(weights[prefix + "input_layernorm.weight"], config.norm_epsilon)
        self.qkv = fused(weights, [f"{prefix}self_attn.{name}_proj" for name in "qkv"])
        self.output = fused(weights, [prefix + "self_attn.o_proj"])
        self.head_norms = head_norms(prefix + "self_attn.", config, weights)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: TokenBatch) -> Tensor:
        config = self.config
        heads = self.qkv(self.norm(x)).view(x.shape[0], -1, config.head_dim)
        rotated, values = heads.split((config.num_heads + config.num_kv_heads, config.num_kv_heads), 1)
        if self.head_norms is not None:
            parts = rotated.split((config.num_heads, config.num_kv_heads), 1)
            rotated = torch.cat([norm(part) for norm, part in zip(self.head_norms, parts, strict=True)], 1)
        swapped = rotated.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        rotated = rotated * cos + swapped * sin
        cache.write(self.layer, rotated[:, config.num_heads :], values, batch)
        return self.output(cache.attend(self.layer, rotated[:, : config.num_heads], batch))


class Mlp:
    """The MLP sub-layer: norm, fused gate/up projection, SwiGLU, down projection."""

    def __init__(self, layer: int, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
        prefix = f"model.layers.{layer}."
        self.norm = Norm(weights[prefix + "post_attention_layernorm.weight"], config.norm_epsilon)
        self.gate_up = fused(weights, [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"])
        self.down = fused(weights, [prefix + "mlp.down_proj"])

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def fused(weights: dict[str, Tensor], names: list[str]) -> Linear:
    """Several projections of the same input as one product."""
    biases = [weights[name + ".bias"] for name in names if name + ".bias" in weights]
    weight = torch.cat([weights[name + ".weight"] for name in names])
    return Linear(weight, torch.cat(biases) if biases else None)


def head_norms(prefix: str, config: DecoderConfig, weights: dict[str, Tensor]) -> tuple[Norm, Norm] | None:
    if prefix + "q_norm.weight" not in weights:
        return None
    query, key = (weights[f"{prefix}{name}_norm.weight"] for name in "qk")
    return Norm(query, config.norm_epsilon), Norm(key, config.norm_epsilon)


class Decoder:
    """A Llama-shaped decoder over a checkpoint's weights; holds no request state."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config, weights = checkpoint.config, checkpoint.weights
        self.config = config
        self.dtype = checkpoint.dtype
        self.device = checkpoint.device
        self.embeddings = weights["model.embed_tokens.weight"]
        self.cos, self.sin = (table.to(self.dtype) for table in checkpoint.rope)
        self.attentions = [Attention(i, config, weights) for i in range(config.num_layers)]
        self.mlps = [Mlp(i, config, weights) for i in range(config.num_layers)]
        self.norm = Norm(weights["model.norm.weight"], config.norm_epsilon)
        self.head = Linear(weights["lm_head.weight"], weights.get("lm_head.bias"))

    def new_cache(self, num_slots: int, max_length: int) -> KVCache:
        return KVCache(self.config, num_slots, max_length, self.dtype, self.device)

    def forward(self, batch: TokenBatch, cache: KVCache, mask: SkipMask = FULL) -> Tensor:
        """Hidden states [tokens, hidden_size] after the final norm, without the mask's sub-layers."""
        cos, sin = self.cos[batch.positions][:, None], self.sin[batch.positions][:, None]
        x = self.embeddings[batch.ids]
        for layer in range(self.config.num_layers):
            if layer not in mask.attention:
                x = x + self.attentions[layer](x, cos, sin, cache, batch)
            if layer not in mask.mlp:
                x = x + self.mlps[layer](x)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [tokens, vocabulary_size] in fp32."""
        return self.head(hidden).float()

"""The decoder: one forward over attention and MLP sub-layers, some of which a mask leaves out.

The full model is the empty mask. The mask is an argument, so that requests with different masks
take turns on one model. On a CPU the kernels do the work, elsewhere torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.kvcache.slots import KVCache, TokenBatch
from server.engine.model import kernels
from server.engine.model.checkpoint import Checkpoint
from server.engine.model.linear import Linear
from server.engine.types import EMPTY_MASK, SkipMask


@dataclass(frozen=True)
class Norm:
    """RMSNorm with its weight; used on hidden states and, in Qwen3, on each query and key head."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Weights:
    """A checkpoint's weights by name, made into the parts of a decoder."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.weights
        self.epsilon = checkpoint.config.norm_epsilon
        self.is_packed = kernels.is_supported(checkpoint.config, checkpoint.dtype, checkpoint.device)

    def norm(self, name: str) -> Norm:
        return Norm(self.tensors[name + ".weight"], self.epsilon)

    def optional_norm(self, name: str) -> Norm | None:
        return self.norm(name) if name + ".weight" in self.tensors else None

    def linear(self, *names: str) -> Linear:
        """Several projections of the same input as one product."""
        biases = [self.tensors[name + ".bias"] for name in names if name + ".bias" in self.tensors]
        weight = torch.cat([self.tensors[name + ".weight"] for name in names])
        return Linear(weight, torch.cat(biases) if biases else None, self.is_packed)


class Attention:
    """The attention sub-layer: norm, fused q/k/v projection, RoPE, cache, output projection."""

    def __init__(self, layer: int, config: DecoderConfig, weights: Weights) -> None:
        prefix = f"model.layers.{layer}."
        self.layer = layer
        self.config = config
        self.norm = weights.norm(prefix + "input_layernorm")
        self.qkv = weights.linear(*(f"{prefix}self_attn.{name}_proj" for name in "qkv"))
        self.query_norm = weights.optional_norm(prefix + "self_attn.q_norm")
        self.key_norm = weights.optional_norm(prefix + "self_attn.k_norm")
        self.output = weights.linear(prefix + "self_attn.o_proj")

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: TokenBatch) -> Tensor:
        config = self.config
        heads = self.qkv(self.norm(x)).view(x.shape[0], -1, config.head_dim)
        rotated, values = heads.split((config.num_heads + config.num_kv_heads, config.num_kv_heads), 1)
        if self.query_norm and self.key_norm:
            queries, keys = rotated.split((config.num_heads, config.num_kv_heads), 1)
            rotated = torch.cat((self.query_norm(queries), self.key_norm(keys)), 1)
        swapped = rotated.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        rotated = rotated * cos + swapped * sin
        cache.write(self.layer, rotated[:, config.num_heads :], values, batch)
        return self.output(cache.attend(self.layer, rotated[:, : config.num_heads], batch))


class Mlp:
    """The MLP sub-layer: norm, fused gate/up projection, SwiGLU, down projection."""

    def __init__(self, layer: int, weights: Weights) -> None:
        prefix = f"model.layers.{layer}."
        self.norm = weights.norm(prefix + "post_attention_layernorm")
        self.gate_up = weights.linear(prefix + "mlp.gate_proj", prefix + "mlp.up_proj")
        self.down = weights.linear(prefix + "mlp.down_proj")

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Decoder:
    """A Llama-shaped decoder over a checkpoint's weights; holds no request state."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config, weights = checkpoint.config, Weights(checkpoint)
        self.config = config
        self.dtype = checkpoint.dtype
        self.device = checkpoint.device
        self.embeddings = checkpoint.weights["model.embed_tokens.weight"].contiguous()
        self.cos, self.sin = (table.to(self.dtype) for table in checkpoint.rope)
        self.attentions = [Attention(i, config, weights) for i in range(config.num_layers)]
        self.mlps = [Mlp(i, weights) for i in range(config.num_layers)]
        self.norm = weights.norm("model.norm")
        self.head = weights.linear("lm_head")
        self.native = self.bind_kernels(checkpoint.rope) if weights.is_packed else None

    def new_cache(self, num_slots: int, max_length: int) -> KVCache:
        return KVCache(self.config, num_slots, max_length, self.dtype, self.device)

    @contextmanager
    def lone_threads(self) -> Iterator[None]:
        """Keeps torch to one thread while the kernels' own are at work.

        Torch's threads go on spinning for milliseconds after each of its operations, on the
        processors that the kernels need.
        """
        if self.native is None:
            yield
            return
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)

    def forward(self, batch: TokenBatch, cache: KVCache, mask: SkipMask = EMPTY_MASK) -> Tensor:
        """Hidden states [tokens, hidden_size] after the final norm, without the mask's sub-layers."""
        if self.native:
            return self.native.forward(batch, cache, mask)
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
        return self.native.logits(hidden) if self.native else self.head(hidden).float()

    def greedy(self, batch: TokenBatch, cache: KVCache) -> list[int]:
        """The full model's greedy token after each of the batch's."""
        if self.native:
            return self.native.greedy(batch, cache)
        tokens: list[int] = self.logits(self.forward(batch, cache)).argmax(-1).tolist()
        return tokens

    def bind_kernels(self, rope: Tensor) -> kernels.NativeDecoder:
        """The CPU kernels over this decoder's packed weights; norms, biases and RoPE tables in fp32."""

        def vector(norm: Norm | None) -> Tensor | None:
            return None if norm is None else norm.weight.float().contiguous()

        layers = [
            {
                "attention_norm": vector(attention.norm),
                "qkv": attention.qkv.weight,
                "qkv_bias": attention.qkv.padded_bias,
                "query_norm": vector(attention.query_norm),
                "key_norm": vector(attention.key_norm),
                "output": attention.output.weight,
                "output_bias": attention.output.padded_bias,
                "mlp_norm": vector(mlp.norm),
                "gate_up": mlp.gate_up.weight,
                "gate_up_bias": mlp.gate_up.padded_bias,
                "down": mlp.down.weight,
                "down_bias": mlp.down.padded_bias,
            }
            for attention, mlp in zip(self.attentions, self.mlps, strict=True)
        ]
        cos, sin = (table.float().contiguous() for table in rope)
        edges = [vector(self.norm), self.head.weight, self.head.padded_bias, self.embeddings, cos, sin]
        return kernels.NativeDecoder(self.config, layers, edges, torch.get_num_threads())

"""The forward in torch: for GPUs, and for processors that the kernels were not built for."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checked import Checked
from server.engine.model.checkpoint import Checkpoint
from server.engine.model.linear import Linear
from server.engine.types import FULL_MODEL, DraftModel, Patch


@dataclass(frozen=True)
class Norm:
    """RMSNorm with its weight; used on hidden states and, in Qwen3, on each query and key head."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Weights:
    """A checkpoint's weights by name, made into the parts of a decoder in torch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.epsilon = checkpoint.config.norm_epsilon

    def norm(self, name: str) -> Norm:
        return Norm(self.checkpoint.dense(name + ".weight"), self.epsilon)

    def optional_norm(self, name: str) -> Norm | None:
        return self.norm(name) if name + ".weight" in self.checkpoint.weights else None

    def linear(self, *names: str) -> Linear:
        """Several projections of the same input as one product."""
        biases = [self.checkpoint.dense(name + ".bias") for name in names if name + ".bias" in self.checkpoint.weights]
        weight = torch.cat([self.checkpoint.dense(name + ".weight") for name in names])
        return Linear(weight, torch.cat(biases) if biases else None)


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

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, batch: TokenBatch, writes: bool = True
    ) -> Tensor:
        config = self.config
        heads = self.qkv(self.norm(x)).view(x.shape[0], -1, config.head_dim)
        rotated, values = heads.split((config.num_heads + config.num_kv_heads, config.num_kv_heads), 1)
        if self.query_norm and self.key_norm:
            queries, keys = rotated.split((config.num_heads, config.num_kv_heads), 1)
            rotated = torch.cat((self.query_norm(queries), self.key_norm(keys)), 1)
        swapped = rotated.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        rotated = rotated * cos + swapped * sin
        if writes:
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


class TorchHead:
    """Room for `capacity` rows of a head; the first ones are filled."""

    def __init__(self, own: Linear, capacity: int) -> None:
        self.own = own
        self.count = 0
        self.ids = torch.zeros(capacity, dtype=torch.long, device=own.weight.device)
        self.weight = own.weight.new_zeros(capacity, own.weight.shape[1])
        self.bias = None if own.bias is None else own.bias.new_zeros(capacity)

    @property
    def token_ids(self) -> Tensor:
        """The token of each row [rows]."""
        return self.ids[: self.count]

    def put(self, token_ids: list[int], first: int) -> None:
        """Gives these tokens the rows from `first` on; no row before it is left empty."""
        end = first + len(token_ids)
        added = torch.tensor(token_ids, dtype=torch.long, device=self.ids.device)
        self.ids[first:end] = added
        self.weight[first:end] = self.own.weight[added]
        if self.bias is not None and self.own.bias is not None:
            self.bias[first:end] = self.own.bias[added]
        self.count = max(self.count, end)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, rows] in fp32."""
        bias = None if self.bias is None else self.bias[: self.count]
        return Linear(self.weight[: self.count], bias)(hidden).float()


class TorchDecoder:
    """Attention and MLP sub-layers over a checkpoint's weights, dequantised where they have few bits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config, weights = checkpoint.config, Weights(checkpoint)
        self.config = config
        self.embeddings = checkpoint.dense("model.embed_tokens.weight").contiguous()
        self.cos, self.sin = (table.to(checkpoint.dtype) for table in checkpoint.rope)
        self.attentions = [Attention(i, config, weights) for i in range(config.num_layers)]
        self.mlps = [Mlp(i, weights) for i in range(config.num_layers)]
        self.norm = weights.norm("model.norm")
        self.head = weights.linear("lm_head")
        self.patches: WeakKeyDictionary[Patch, Linear] = WeakKeyDictionary()

    def forward(self, batch: TokenBatch, cache: KVCache, draft: DraftModel, states: Tensor | None = None) -> Tensor:
        """Hidden states [tokens, hidden_size], as `Decoder.forward`."""
        x = self.run(batch, cache, self.embeddings[batch.ids], range(2 * self.config.num_layers), draft, writes=True)
        normed = self.norm(x)
        if draft.patch is None:
            return normed
        assert states is not None
        return self.patch_linear(draft.patch)(torch.cat((normed, states.to(normed.dtype)), -1))

    def run(
        self, batch: TokenBatch, cache: KVCache, x: Tensor, sublayers: range, draft: DraftModel, writes: bool
    ) -> Tensor:
        """The residual stream [tokens, hidden_size] behind those of some sub-layers that the draft has."""
        cos, sin = self.cos[batch.positions][:, None], self.sin[batch.positions][:, None]
        skipped = draft.skips(self.config.num_layers)
        for sublayer in sublayers:
            layer = sublayer // 2
            if sublayer % 2 == 0 and layer not in skipped.attention:
                x = x + self.attentions[layer](x, cos, sin, cache, batch, writes)
            if sublayer % 2 == 1 and layer not in skipped.mlp:
                x = x + self.mlps[layer](x)
        return x

    def sublayers(
        self, batch: TokenBatch, cache: KVCache, residual: Tensor | None, sublayers: range, draft: DraftModel
    ) -> Tensor:
        """The residual stream [tokens, hidden_size], as `Decoder.sublayers`."""
        x = self.embeddings[batch.ids] if residual is None else residual.to(self.embeddings.dtype)
        return self.run(batch, cache, x, sublayers, draft, writes=False)

    def normed(self, residual: Tensor) -> Tensor:
        """What the head takes, of a residual stream [tokens, hidden_size]."""
        return self.norm(residual.to(self.embeddings.dtype))

    def patch_linear(self, patch: Patch) -> Linear:
        """A patch's matrix on the decoder's device, in its precision."""
        if patch not in self.patches:
            weight, bias = (
                part.to(self.embeddings.device, self.embeddings.dtype) for part in (patch.weight, patch.bias)
            )
            self.patches[patch] = Linear(weight, bias)
        return self.patches[patch]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary_size] in fp32."""
        return self.head(hidden).float()

    def checked(self, batch: TokenBatch, cache: KVCache) -> Checked:
        """The full model's likeliest token after each of the batch's."""
        states = self.forward(batch, cache, FULL_MODEL)
        logits = self.logits(states)
        return Checked(logits.argmax(-1).tolist(), states, logits)

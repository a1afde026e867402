"""The training network: the Llama shape, with sub-layers that drop out and exits that learn.

Parameter names are those of `LlamaForCausalLM`, so a trained state is exported as it is.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig


@dataclass(frozen=True)
class Recipe:
    """Drop-out that rises exponentially with depth, and an early-exit loss (LayerSkip, arXiv 2404.16710)."""

    max_drop: float = 0.25
    exit_weight: float = 0.5
    first_exit: int = 2
    last_exit: int = 12

    def drop_probability(self, layer: int, num_layers: int) -> float:
        return self.max_drop * (math.exp(layer * math.log(2) / (num_layers - 1)) - 1)


def demo_config(vocabulary_size: int, eos: int, bos: int, pad: int) -> LlamaConfig:
    """16 layers of 256: deep and narrow, so that there is much to skip."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the two-halves layout of transformers; x [tokens, heads, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v


class Mlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """One decoder layer over flat tokens, so that its compiled parts see one shape at every width."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, rows: int) -> Tensor:
        q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in self.queries(x, cos, sin))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        output: Tensor = self.self_attn.o_proj(mixed.transpose(1, 2).flatten(0, 1).flatten(1))
        return x + output

    def transform(self, x: Tensor) -> Tensor:
        output: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + output


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(self.blocks)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Network(nn.Module):
    """The decoder with its tied head; `forward` returns the losses of the last layer and of one exit."""

    def __init__(self, config: LlamaConfig, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = Decoder(config)
        self.num_layers = config.num_hidden_layers
        frequencies = 1e4 ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies.repeat(2)
        self.cos = nn.Buffer(angles.cos()[:, None], persistent=False)
        self.sin = nn.Buffer(angles.sin()[:, None], persistent=False)
        self.apply(self.initialise)
        for layer in self.model.blocks:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.num_layers))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def hidden_states(self, ids: Tensor, exit_layer: int | None) -> tuple[Tensor, Tensor | None]:
        """Hidden states [tokens, width] after the last layer and after `exit_layer` layers."""
        rows, width = ids.shape
        cos, sin = (table[:width].repeat(rows, 1, 1) for table in (self.cos, self.sin))
        x, exit_x = self.model.embed_tokens(ids.flatten()), None
        for index, layer in enumerate(self.model.blocks):
            if index == exit_layer:
                exit_x = x
            drop = self.recipe.drop_probability(index, self.num_layers) if self.training else 0.0
            if drop == 0 or torch.rand(()) >= drop:
                x = layer.attend(x, cos, sin, rows)
            if drop == 0 or torch.rand(()) >= drop:
                x = layer.transform(x)
        return x, exit_x

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight).float()

    def forward(self, ids: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
        """(token loss, exit loss) of `ids` [rows, width + 1]; the exit learns the full model's distribution.

        What a draft must do is agree with the full model, so the exit's teacher is that
        distribution rather than the label.
        """
        exit_layer = int(torch.randint(self.recipe.first_exit, self.recipe.last_exit, ())) if self.training else None
        x, exit_x = self.hidden_states(ids[:, :-1], exit_layer)
        chosen = is_target.flatten().nonzero().flatten()
        labels = ids[:, 1:].flatten()[chosen]
        logits = self.logits(x[chosen])
        loss = F.cross_entropy(logits, labels)
        if exit_x is None:
            return loss, torch.zeros(())
        teacher = logits.detach().softmax(-1)
        return loss, F.cross_entropy(self.logits(exit_x[chosen]), teacher)

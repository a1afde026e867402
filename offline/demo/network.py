"""The training network: the Llama shape, with a draft path for each domain that learns beside the full model.

Parameter names are those of `LlamaForCausalLM`, so a trained state is exported as it is.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig


@dataclass(frozen=True)
class Recipe:
    """Draft paths: a domain's drafts keep the first layer, two layers of the domain's own, and the last.

    What lies outside is dropped from the draft only, so that the full model loses nothing; some sub-layers
    more or fewer are kept at times, so that masks near a path draft well too (stochastic depth, arXiv
    1603.09382, by domain). A path learns the full model's distribution, as the exits of LayerSkip
    (arXiv 2404.16710) do, and reads the keys and values of the full pass, as a draft will.
    """

    path_weight: float = 1.0
    exact_share: float = 0.5
    keep_inside: float = 0.8
    keep_outside: float = 0.15
    longest_chain: int = 4

    @staticmethod
    def core(domain: int, num_layers: int) -> set[int]:
        """The layers on the path of the domain with this number."""
        return {0, 1 + 2 * domain, 2 + 2 * domain, num_layers - 1}

    def path(self, domain: int, num_layers: int, is_exact: bool) -> list[tuple[bool, bool]]:
        """Whether the draft keeps (attention, MLP) of each layer; near the core unless `is_exact`."""
        core = self.core(domain, num_layers)
        if is_exact or torch.rand(()) < self.exact_share:
            return [(layer in core, layer in core) for layer in range(num_layers)]
        keep = torch.tensor([self.keep_inside if i in core else self.keep_outside for i in range(num_layers)])
        kept = (torch.rand(2, num_layers) < keep).tolist()
        return list(zip(*kept, strict=True))


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


class Past(NamedTuple):
    """Keys and values [rows, heads, width, head_dim] of one layer in the full pass."""

    keys: Tensor
    values: Tensor


def mix(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of grouped heads; plain products take a third of the time of torch's fused one on this CPU path."""
    rows, heads, width, size = q.shape
    groups = k.shape[1]
    scores = q.reshape(rows, groups, -1, size) @ k.transpose(2, 3) / math.sqrt(size)
    shares = (scores.unflatten(2, (heads // groups, width)) + bias).softmax(-1).to(v.dtype)
    mixed: Tensor = shares.flatten(2, 3) @ v
    return mixed.reshape(rows, heads, width, size)


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

    def attend(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, rows: int, past: Past | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(output, keys, values); those of `past` stand before those of `x`, and `bias` says who sees which."""
        q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in self.queries(x, cos, sin))
        keys, values = (k, v) if past is None else (torch.cat((past.keys, k), 2), torch.cat((past.values, v), 2))
        mixed = mix(q, keys, values, bias)
        output: Tensor = self.self_attn.o_proj(mixed.transpose(1, 2).flatten(0, 1).flatten(1))
        return x + output, k, v

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

    def tables(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = ids.shape
        return self.cos[:width].repeat(rows, 1, 1), self.sin[:width].repeat(rows, 1, 1)

    def full_pass(self, ids: Tensor) -> tuple[Tensor, list[Past]]:
        """Hidden states [tokens, hidden] after the last layer, and each layer's keys and values."""
        cos, sin = self.tables(ids)
        bias = as_bias(ages(ids.shape[1], ids.device) >= 0)
        x, memory = self.model.embed_tokens(ids.flatten()), []
        for layer in self.model.blocks:
            x, keys, values = layer.attend(x, cos, sin, bias, len(ids))
            x = layer.transform(x)
            memory.append(Past(keys, values))
        return x, memory

    def draft_pass(self, ids: Tensor, memory: list[Past], path: list[tuple[bool, bool]], chain: int) -> Tensor:
        """Hidden states of drafts along `path`, each the last of a chain of `chain + 1` drafted tokens.

        A place sees the full pass up to the start of its chain, and the chain's own drafts from there.
        """
        cos, sin = self.tables(ids)
        age = ages(ids.shape[1], ids.device)
        bias = as_bias(torch.cat((age > chain, (age >= 0) & (age <= chain)), 1))
        x: Tensor = self.model.embed_tokens(ids.flatten())
        for layer, past, (has_attention, has_mlp) in zip(self.model.blocks, memory, path, strict=True):
            if has_attention:
                x, _, _ = layer.attend(x, cos, sin, bias, len(ids), past)
            if has_mlp:
                x = layer.transform(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        normed: Tensor = self.model.norm(x)
        logits: Tensor = F.linear(normed, self.model.embed_tokens.weight)
        return logits.float()

    def forward(self, ids: Tensor, is_target: Tensor, domain: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token loss, draft loss, acceptance) of `ids` [rows, width + 1], all of one domain.

        What a draft must do is agree with the full model, so its teacher is that distribution
        rather than the label; acceptance is the share of places where both prefer the same token.
        """
        x, memory = self.full_pass(ids[:, :-1])
        path = self.recipe.path(domain, self.num_layers, is_exact=not self.training)
        chain = int(torch.randint(self.recipe.longest_chain, ())) if self.training else 0
        drafted = self.draft_pass(ids[:, :-1], memory, path, chain)
        chosen = is_target.flatten().nonzero().flatten()
        logits, draft_logits = self.logits(x[chosen]), self.logits(drafted[chosen])
        loss = F.cross_entropy(logits, ids[:, 1:].flatten()[chosen])
        draft_loss = F.cross_entropy(draft_logits, logits.detach().softmax(-1))
        agrees = logits.argmax(-1) == draft_logits.argmax(-1)
        return loss, draft_loss, agrees.float().mean()


def ages(width: int, device: torch.device) -> Tensor:
    """How many places before each place the others are, [width, width]; negative for later ones."""
    places = torch.arange(width, device=device)
    return places[:, None] - places


def as_bias(is_seen: Tensor) -> Tensor:
    return torch.zeros(is_seen.shape, dtype=torch.bfloat16, device=is_seen.device).masked_fill(~is_seen, -1e4)

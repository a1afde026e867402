"""A checkpoint's weights as the CPU kernels take them: matrices in panels, vectors in fp32."""

import torch
from torch import Tensor

from server.engine.model.arena import Arena
from server.engine.model.checkpoint import Checkpoint
from server.engine.model.native_decoder import NativeDecoder, Parts, Team
from server.engine.model.panels import Panels, pack

MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
VECTORS = {
    "attention_norm": "input_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
}


def pack_decoder(
    checkpoint: Checkpoint, input_bits: int, team: Team, embeddings: Panels | None = None
) -> NativeDecoder:
    """The kernels over packed copies of a checkpoint's weights, in the order in which a pass reads them.

    `embeddings` may be another decoder's: a pass takes one row of them for each token, in few bits or many.
    """
    packing = Packing(checkpoint)
    layers = [packing.layer(f"model.layers.{i}.") for i in range(checkpoint.config.num_layers)]
    edges = packing.edges(embeddings)
    return NativeDecoder(checkpoint.config, layers, edges, checkpoint.dtype, input_bits, team)


class Packing:
    """A checkpoint's weights, packed into one arena."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.arena = Arena()

    def layer(self, prefix: str) -> Parts:
        matrices = {field: self.panels(prefix + name) for field, name in MATRICES.items()}
        return {**matrices, **{field: self.vector(prefix + name) for field, name in VECTORS.items()}}

    def edges(self, embeddings: Panels | None) -> Parts:
        head = self.panels("lm_head")
        own = head if self.checkpoint.is_tied else None
        cos, sin = (table.float().contiguous() for table in self.checkpoint.rope)
        return {
            "norm": self.vector("model.norm"),
            "cos": cos,
            "sin": sin,
            "head": head,
            "embeddings": embeddings or own or self.panels("model.embed_tokens"),
        }

    def panels(self, name: str) -> Panels:
        """The packed weight and bias of one projection."""
        weight, bias = name + ".weight", self.checkpoint.weights.get(name + ".bias")
        if weight in self.checkpoint.quantized:
            return pack(self.checkpoint.quantized[weight].codes(), bias).placed(self.arena)
        return pack(self.checkpoint.weights[weight], bias).placed(self.arena)

    def vector(self, name: str) -> Tensor | None:
        values = self.checkpoint.weights.get(name + ".weight")
        return None if values is None else values.to(torch.float32).contiguous()

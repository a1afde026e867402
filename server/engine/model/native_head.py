"""Outputs of a CPU decoder's head in panels of their own, which a draft scores in place of all."""

from array import array
from ctypes import byref

import torch
from torch import Tensor

from server.engine.config import LANES
from server.engine.model.arena import Arena
from server.engine.model.native_decoder import NativeDecoder, matrix


class NativeHead:
    """Room for `capacity` outputs of a decoder's head, bit for bit as they are there; the first ones are filled."""

    def __init__(self, decoder: NativeDecoder, capacity: int) -> None:
        self.decoder = decoder
        self.own = matrix(decoder.head, decoder.input_bits)
        self.panels = decoder.head.blank(capacity).placed(Arena())
        self.matrix = matrix(self.panels, decoder.input_bits)
        self.matrix.outputs = 0
        # To whole panels: where all logits are NaN, the pick is one beyond the last.
        self.ids = array("i", bytes(4 * (capacity + -capacity % LANES)))

    @property
    def token_ids(self) -> Tensor:
        """The token of each row [rows]."""
        return torch.frombuffer(self.ids, dtype=torch.int32)[: self.matrix.outputs]

    def put(self, token_ids: list[int], first: int) -> None:
        """Gives these tokens the rows from `first` on; no row before it is left empty."""
        added, end = array("i", token_ids), first + len(token_ids)
        self.ids[first:end] = added
        address = added.buffer_info()[0]
        self.decoder.kernels.matrix_copy_outputs(byref(self.own), len(added), address, byref(self.matrix), first)
        self.matrix.outputs = max(self.matrix.outputs, end)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, rows] in fp32."""
        return self.decoder.logits(hidden, self)

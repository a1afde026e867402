"""The CPU kernels' decoder over packed weights, and the memory that its passes write to."""

from array import array
from collections.abc import Mapping, Sequence
from ctypes import Array as CArray
from ctypes import addressof, byref
from itertools import chain
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.arena import Arena
from server.engine.model.checked import MOST_LOGITS, Checked
from server.engine.model.kernels import Chain, Choice, Edges, Layer, Matrix, Rows, Sampling, Shape, library
from server.engine.model.panels import Panels, pack
from server.engine.types import FULL_MODEL, DraftModel, Patch, SkipMask

if TYPE_CHECKING:
    from server.engine.model.native_head import NativeHead

Samplings = CArray[Sampling]
"""How the token of each row is drawn."""
Seconds = list[tuple[int, float]]
"""What came second to each token of a chain, and its probability."""
Parts = Mapping[str, Panels | Tensor | None]
"""Matrices and vectors by the names of the kernels' fields, None where the model has no such part."""


class Team:
    """The threads that compute a pass together; decoders that take turns share them."""

    def __init__(self, num_threads: int) -> None:
        kernels = library()
        assert kernels is not None
        self.kernels = kernels
        self.handle = kernels.team_new(num_threads)

    def __del__(self) -> None:
        self.kernels.team_free(self.handle)


class NativeDecoder:
    """The C++ decoder over packed weights; keeps every tensor that it points to alive."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Parts],
        edges: Parts,
        cache_dtype: torch.dtype,
        input_bits: int,
        team: Team,
    ) -> None:
        """`input_bits`: of what codes are multiplied with: 8, 16 for fine activations, or 32, which are fp32."""
        kernels = library()
        assert kernels is not None
        self.handle: int | None = None
        self.kernels = kernels
        self.config = config
        self.parts = [edges, *layers]
        self.input_bits = input_bits
        self.team = team
        shape = Shape(
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            int(cache_dtype == torch.bfloat16),
            config.norm_epsilon,
        )
        pointers = (Layer * len(layers))(*(Layer(**pointed(layer, input_bits)) for layer in layers))
        self.handle = kernels.decoder_new(
            byref(shape), pointers, byref(Edges(**pointed(edges, input_bits))), team.handle
        )
        self.skipped: dict[tuple[SkipMask, int], array[int]] = {}
        self.patches: WeakKeyDictionary[Patch, tuple[Panels, Matrix]] = WeakKeyDictionary()
        self.checking, self.drafting = Scratch(config, MOST_LOGITS), Scratch(config)
        """Drafts write to memory of their own: they begin at the states that a check has left."""

    @property
    def embeddings(self) -> Panels:
        return self.edge("embeddings")

    @property
    def head(self) -> Panels:
        return self.edge("head")

    def edge(self, name: str) -> Panels:
        panels = self.parts[0][name]
        assert isinstance(panels, Panels)
        return panels

    @property
    def memory(self) -> dict[int, int]:
        """Bytes of each tensor of the weights by its address; two parts or two decoders may share one."""
        memory: dict[int, int] = {}
        for part in (part for parts in self.parts for part in parts.values() if part is not None):
            tensors = part.tensors.values() if isinstance(part, Panels) else [part]
            memory |= {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
        return memory

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(self.memory.values())

    @property
    def weight_bits(self) -> float:
        """Average bits of a weight that a pass reads, scales included."""
        matrices = [self.parts[0]["head"], *(part for layer in self.parts[1:] for part in layer.values())]
        panels = [part for part in matrices if isinstance(part, Panels)]
        return 8 * sum(each.nbytes for each in panels) / sum(each.outputs * each.inputs for each in panels)

    def __del__(self) -> None:
        if self.handle is not None:
            self.kernels.decoder_free(self.handle)

    def forward(self, batch: TokenBatch, cache: KVCache, draft: DraftModel, states: Tensor | None = None) -> Tensor:
        """Hidden states [tokens, hidden_size] in fp32, as `Decoder.forward`."""
        hidden = torch.empty(batch.num_tokens, self.config.hidden_size)
        flat = flattened(batch)
        rows = self.rows(flat, batch.num_tokens, hidden, cache, draft, states)
        self.kernels.decoder_forward(self.handle, byref(rows))
        return hidden

    def keep_branch(self, cache: KVCache, slot: int, places: list[int], first: int) -> None:
        """As `Decoder.keep_branch`."""
        count = len(places)
        flat = array("i", [0] * count + [*range(first, first + count)] + [slot] * count + places + [0] * count)
        rows = self.rows(flat, count, torch.empty(0), cache, FULL_MODEL)
        self.kernels.decoder_keep_branch(self.handle, byref(rows))

    def sublayers(
        self, batch: TokenBatch, cache: KVCache, residual: Tensor | None, sublayers: range, draft: DraftModel
    ) -> Tensor:
        """The residual stream [tokens, hidden_size] in fp32, as `Decoder.sublayers`."""
        flat, shape = flattened(batch), (batch.num_tokens, self.config.hidden_size)
        stream = torch.empty(shape) if residual is None else residual.float().clone()
        rows = self.rows(flat, batch.num_tokens, stream, cache, draft)
        rows.is_reading = 1
        self.kernels.decoder_pass(self.handle, byref(rows), sublayers.start, sublayers.stop, stream.data_ptr())
        return stream

    def normed(self, residual: Tensor) -> Tensor:
        """What the head takes, of a residual stream [tokens, hidden_size]."""
        norm = self.parts[0]["norm"]
        assert isinstance(norm, Tensor)
        return torch.nn.functional.rms_norm(residual.float(), norm.shape, norm, self.config.norm_epsilon)

    def checked(
        self, batch: TokenBatch, cache: KVCache, samplings: Samplings | None = None, num_checked: int | None = None
    ) -> Checked:
        """The full model's token after each of the batch's, or of the first ones, at most `MOST_LOGITS`.

        Its next check writes over this.
        """
        flat, count = flattened(batch), batch.num_tokens
        num_checked = count if num_checked is None else num_checked
        assert num_checked <= MOST_LOGITS
        scratch = self.checking.grown(count, num_checked)
        rows = self.rows(flat, count, scratch.hidden, cache, FULL_MODEL)
        rows.num_chosen = num_checked
        self.kernels.decoder_choose(self.handle, byref(rows), None, None, samplings, byref(scratch.sure))
        return Checked(scratch.tokens[:num_checked].tolist(), scratch.hidden[:count], scratch.logits)

    def chosen(
        self,
        batch: TokenBatch,
        cache: KVCache,
        draft: DraftModel,
        head: "NativeHead | None" = None,
        samplings: Samplings | None = None,
    ) -> tuple[list[int], list[float]]:
        """The token after each of the batch's as a draft without a patch chooses it, and the likeliest's probability.

        `head` as in `draft`; without `samplings` the token is that one.
        """
        flat, scratch = flattened(batch), self.drafting.grown(batch.num_tokens, batch.num_tokens)
        rows = self.rows(flat, batch.num_tokens, scratch.hidden, cache, draft)
        self.kernels.decoder_choose(self.handle, byref(rows), *scored(head), samplings, byref(scratch.unsure))
        return scratch.tokens[: batch.num_tokens].tolist(), scratch.probabilities[: batch.num_tokens].tolist()

    def draft(
        self,
        batch: TokenBatch,
        cache: KVCache,
        draft: DraftModel,
        limits: list[int],
        confidence: float,
        head: "NativeHead | None" = None,
        states: Tensor | None = None,
        samplings: Samplings | None = None,
        seconds: list[Seconds] | None = None,
    ) -> list[list[int]]:
        """Chains after the batch's single tokens, as `ChainDrafter` describes them.

        `head`: the rows of the draft's vocabulary, where it has one; `states` as in `Decoder.forward`; `samplings` draw
        the first tokens of each, without them they are greedy. `seconds` receives those of each chain.
        """
        flat, scratch = flattened(batch), self.drafting.grown(batch.num_tokens, batch.num_tokens)
        stride = max(limits)
        most, drafted = array("i", limits), array("i", bytes(4 * stride * len(limits)))
        lengths = array("i", bytes(4 * len(limits)))
        addresses = (values.buffer_info()[0] for values in (most, drafted, lengths))
        chain = Chain(stride, confidence, draft.floor, *addresses, addressof(samplings) if samplings else None)
        if seconds is not None:
            second, chances = array("i", drafted), array("f", bytes(4 * len(drafted)))
            chain.seconds, chain.chances = second.buffer_info()[0], chances.buffer_info()[0]
            chain.outputs = head.matrix.outputs if head else self.config.vocabulary_size
        rows = self.rows(flat, batch.num_tokens, scratch.hidden, cache, draft, states)
        self.kernels.decoder_draft(self.handle, byref(rows), *scored(head), byref(scratch.unsure), byref(chain))
        if seconds is not None:
            tokens = [head.ids[each] for each in second] if head else second
            pairs = list(zip(tokens, chances, strict=True))
            seconds += [pairs[i * stride : i * stride + length] for i, length in enumerate(lengths)]
        return [drafted[i * stride : i * stride + length].tolist() for i, length in enumerate(lengths)]

    def rows(
        self,
        flat: "array[int]",
        count: int,
        hidden: Tensor,
        cache: KVCache,
        draft: DraftModel,
        states: Tensor | None = None,
    ) -> Rows:
        """`flat` has `count` ids, positions and slots, and places and parents where there is a tree.

        The caller keeps it and the tensors alive through the call. `states` are contiguous and in fp32.
        """
        first, number = flat.buffer_info()
        parts = [first + part * count * flat.itemsize for part in range(number // count)]
        return Rows(
            count,
            cache.table_size,
            count,
            *parts[:3],
            cache.tables.buffer_info()[0],
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            self.skipped_address(draft),
            hidden.data_ptr(),
            addressof(self.patch_matrix(draft.patch)) if draft.patch else None,
            address(states),
            0,
            *parts[3:],
        )

    def passing_logits(self, hidden: Tensor) -> Tensor:
        """As `logits`, of at most `MOST_LOGITS` states: over those of the last check, and until the next one."""
        return self.logits(hidden, out=self.checking.logits[: hidden.shape[0]])

    def logits(self, hidden: Tensor, head: "NativeHead | None" = None, out: Tensor | None = None) -> Tensor:
        """Logits [tokens, vocabulary_size] of hidden states in fp32; of a draft's head [tokens, rows]."""
        hidden = hidden.float().contiguous()
        size = hidden.shape[0], head.matrix.outputs if head else self.config.vocabulary_size
        out = torch.empty(size) if out is None else out
        assert out.shape == size
        scored = byref(head.matrix) if head else None
        self.kernels.decoder_logits(self.handle, scored, hidden.shape[0], hidden.data_ptr(), out.data_ptr())
        return out

    def skipped_address(self, draft: DraftModel) -> int:
        """Address of a byte for each sub-layer in turn, 1 where the draft leaves it out."""
        key = draft.mask, draft.patch.start if draft.patch else self.config.num_layers
        if key not in self.skipped:
            mask, layers = draft.skips(self.config.num_layers), range(self.config.num_layers)
            self.skipped[key] = array("B", [i in part for i in layers for part in (mask.attention, mask.mlp)])
        return self.skipped[key].buffer_info()[0]

    def patch_matrix(self, patch: Patch) -> Matrix:
        """A patch's matrix in bf16, packed when it is first used."""
        if patch not in self.patches:
            panels = pack(patch.weight.bfloat16(), patch.bias).placed(Arena())
            self.patches[patch] = panels, matrix(panels, self.input_bits)
        return self.patches[patch][1]


class Scratch:
    """What greedy passes write; reused by the next one, and replaced by twice as much where that has more tokens.

    Were it replaced by just as much as is needed, the heap would keep a piece of each size that there was.
    """

    def __init__(self, config: DecoderConfig, num_chosen: int = 0) -> None:
        """`num_chosen`: tokens that there is room for from the start; rows that none has used take no memory yet."""
        self.config = config
        self.num_tokens = self.num_chosen = -1
        self.grown(0, num_chosen)

    def grown(self, num_tokens: int, num_chosen: int) -> Self:
        """Itself, with room for the states of so many tokens, and for what is chosen after so many of them."""
        if num_tokens > self.num_tokens:
            self.num_tokens = max(num_tokens, 2 * self.num_tokens)
            self.hidden = torch.empty(self.num_tokens, self.config.hidden_size)
        if num_chosen > self.num_chosen:
            self.num_chosen = max(num_chosen, 2 * self.num_chosen)
            self.logits = torch.empty(self.num_chosen, self.config.vocabulary_size)
            self.tokens = array("i", bytes(4 * self.num_chosen))
            self.probabilities = array("f", bytes(4 * self.num_chosen))
            tokens, logits = self.tokens.buffer_info()[0], self.logits.data_ptr()
            self.sure = Choice(tokens, None, logits)
            self.unsure = Choice(tokens, self.probabilities.buffer_info()[0], logits)
        return self

    def row(self, number: int, head: "NativeHead | None" = None) -> Tensor:
        """The logits that the last pass wrote for one of its tokens: of all tokens, or those of a head."""
        size = head.matrix.outputs if head else self.config.vocabulary_size
        return self.logits.view(-1)[number * size : (number + 1) * size]


def scored(head: "NativeHead | None") -> tuple[Any, int | None]:
    """The matrix of what is scored and the address of its tokens; None where that is the model's own head."""
    return (byref(head.matrix), head.ids.buffer_info()[0]) if head else (None, None)


def flattened(batch: TokenBatch) -> "array[int]":
    """Ids, positions and slots of all tokens, one after the other; of a batch with trees places and parents too."""
    tree = (batch.places, batch.parents) if batch.forks else ()
    return array("i", chain(*batch.flat, *tree))


def pointed(parts: Parts, input_bits: int) -> dict[str, Matrix | int | None]:
    """What the kernels' structs have for these parts."""
    return {
        name: matrix(part, input_bits) if isinstance(part, Panels) else address(part) for name, part in parts.items()
    }


def matrix(panels: Panels, input_bits: int) -> Matrix:
    numbers = panels.outputs, panels.inputs, panels.bits, panels.group, panels.zero, input_bits
    tensors = panels.weights, panels.scales, panels.minima, panels.scale_units, panels.minimum_units, panels.bias
    return Matrix(*numbers, *map(address, tensors))


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

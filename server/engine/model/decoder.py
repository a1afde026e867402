"""The decoder: one forward over attention and MLP sub-layers, some of which a mask leaves out.

How a draft differs from the model is an argument, so that requests with different drafts take turns
on one model. On a CPU the kernels do the work, elsewhere torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model import kernels
from server.engine.model.checked import Checked
from server.engine.model.checkpoint import Checkpoint
from server.engine.model.native_decoder import NativeDecoder, Team
from server.engine.model.native_weights import pack_decoder
from server.engine.model.placement import FINE, Activations, activation_bits
from server.engine.model.torch_decoder import TorchDecoder
from server.engine.types import FULL_MODEL, DraftModel

ACTIVATIONS = {8: "8-bit", FINE: "fine", 32: "float32"}


class Decoder:
    """A Llama-shaped decoder over a checkpoint's weights; holds no request state."""

    def __init__(
        self, checkpoint: Checkpoint, activations: Activations = "auto", shared: NativeDecoder | None = None
    ) -> None:
        """`shared`: the kernels of a decoder that takes turns with this one; it lends its threads and embeddings."""
        self.config = checkpoint.config
        self.dtype = checkpoint.dtype
        self.device = checkpoint.device
        self.native: NativeDecoder | None = None
        input_bits = activation_bits(activations, checkpoint.dtype)
        if kernels.is_supported(checkpoint.config, checkpoint.dtype, checkpoint.device):
            team = shared.team if shared else Team(torch.get_num_threads())
            self.native = pack_decoder(checkpoint, input_bits, team, shared.embeddings if shared else None)
        self.body = self.native or TorchDecoder(checkpoint)
        self.precision = precision(checkpoint, self.native is not None, input_bits)
        self.low_bit: Decoder | None = None

    def drafting(self, is_low_bit: bool) -> "Decoder":
        """What computes drafts; raises `ValueError` for those in fewer bits where there is no copy."""
        if not is_low_bit:
            return self
        if self.low_bit is None:
            raise ValueError("a low-bit draft needs a copy of the model in fewer bits")
        return self.low_bit

    def new_cache(self, num_slots: int, max_length: int) -> KVCache:
        """A cache whose slots have blocks of their own for `max_length` positions."""
        return KVCache(self.config, num_slots, max_length, self.dtype, self.device)

    def new_shared_cache(self, num_slots: int, max_length: int, num_blocks: int) -> KVCache:
        """A cache whose slots share blocks, which keep the model's states too."""
        sizes = num_blocks, self.config.hidden_size
        return KVCache(self.config, num_slots, max_length, self.dtype, self.device, *sizes, self.native is None)

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

    def forward(
        self, batch: TokenBatch, cache: KVCache, draft: DraftModel = FULL_MODEL, states: Tensor | None = None
    ) -> Tensor:
        """Hidden states [tokens, hidden_size] after the final norm, as the draft model computes them.

        `states` are those of the token before each [tokens, hidden_size], which a patch reads.
        """
        return self.body.forward(batch, cache, draft, states.float().contiguous() if states is not None else None)

    def keep_branch(self, cache: KVCache, slot: int, places: list[int], first: int) -> None:
        """Moves what a tree's branch left at these places of a slot to the positions from `first` on."""
        if self.native:
            self.native.keep_branch(cache, slot, places, first)
        else:
            cache.keep_branch(slot, places, first)

    def sublayers(
        self,
        batch: TokenBatch,
        cache: KVCache,
        residual: Tensor | None,
        sublayers: range,
        draft: DraftModel = FULL_MODEL,
    ) -> Tensor:
        """The residual stream [tokens, hidden_size] behind some sub-layers, for tokens that the cache holds already.

        They are counted from 0, attention and MLP of each layer in turn; the draft may skip some. `residual` is the
        stream in front of them; None, from sub-layer 0 on, is the tokens' embeddings. The cache stays as it is: every
        token attends to the full model's keys and values, also at its own place, so several may stand at one place.
        """
        return self.body.sublayers(batch, cache, residual, sublayers, draft)

    def normed(self, residual: Tensor) -> Tensor:
        """What `logits` takes, of a residual stream [tokens, hidden_size]."""
        return self.body.normed(residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [tokens, vocabulary_size] in fp32."""
        return self.body.logits(hidden)

    def passing_logits(self, hidden: Tensor) -> Tensor:
        """The same of at most `MOST_LOGITS` states, for as long as no other pass is made and this is not called again.

        The kernels write them where those of a check are: a tensor of this size for each call would be fresh memory.
        """
        return self.native.passing_logits(hidden) if self.native else self.body.logits(hidden)

    def greedy(self, batch: TokenBatch, cache: KVCache) -> Checked:
        """The full model's likeliest token after each of the batch's, which has at most `MOST_LOGITS`."""
        return self.body.checked(batch, cache)


def precision(checkpoint: Checkpoint, is_native: bool, input_bits: int) -> str:
    """What products are computed from, as `bfloat16` or `Q4_1 and Q8_0 weights, fine activations, bfloat16 cache`."""
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    kinds = sorted({weight.kind for weight in checkpoint.quantized.values()})
    if not kinds:
        return dtype
    weights = f"{' and '.join(kinds)} weights"
    if not is_native:
        return f"{weights} dequantised to {dtype}"
    return f"{weights}, {ACTIVATIONS[input_bits]} activations, {dtype} cache"

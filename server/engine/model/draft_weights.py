"""A copy of a model in fewer bits, which drafts are computed with; the model itself checks them.

A pass is bound by the bytes of the weights that it reads, and four bits of each agree with sixteen in nine places of
ten (ML-SpecQD, arXiv 2503.13565).
"""

import logging
from functools import partial

import torch

from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checkpoint import Checkpoint
from server.engine.model.decoder import Decoder
from server.engine.model.placement import ROUNDED_BITS, DraftWeights
from server.engine.model.timing import interleaved_quartiles
from server.engine.model.weights import CheckpointError

logger = logging.getLogger(__name__)

AGREEMENT = 0.9
"""Share of a 4-bit copy's choices that are taken to be the model's, before anything was drafted."""
LENGTH = 3
"""Tokens of the draft whose gain decides."""
NEEDED_GAIN = 1.1
POSITION = 64
ROUNDS = 7


def add_draft(model: Decoder, checkpoint: Checkpoint, choice: DraftWeights) -> None:
    """Gives the model a copy to draft with; `auto` makes one of 4 bits and keeps it where it promises to pay.

    Raises `CheckpointError` where a copy is asked for and there are no kernels to run it.
    """
    if choice == "none" or (choice == "auto" and model.native is None):
        return
    if model.native is None:
        raise CheckpointError(f"draft weights in {choice} need the CPU kernels, which do not run this model here")
    bits = ROUNDED_BITS["int4" if choice == "auto" else choice]
    if choice == "auto" and model.native.weight_bits < 2 * bits:
        return
    copy = Decoder(checkpoint.rounded(bits), "int8", shared=model.native)
    gain = predicted_gain(model, copy)
    said = f"{added_bytes(model, copy) / 1e6:.0f} MB, predicted speed {gain:.2f} of plain"
    if choice == "auto" and gain < NEEDED_GAIN:
        logger.info("no draft weights: a copy in int%d would not pay (%s)", bits, said)
        return
    logger.info("draft weights: int%d, %s", bits, said)
    model.low_bit = copy


def added_bytes(model: Decoder, copy: Decoder) -> int:
    """Bytes of the copy's weights that are not the model's too, as the embeddings are."""
    assert model.native and copy.native
    shared = model.native.memory
    return sum(nbytes for address, nbytes in copy.native.memory.items() if address not in shared)


def predicted_gain(model: Decoder, copy: Decoder) -> float:
    """Speed over plain decoding with drafts of `LENGTH` tokens of which `AGREEMENT` agree, by passes timed here."""
    cache = model.new_cache(1, POSITION + LENGTH + 1)
    passes = (model, 1), (model, LENGTH + 1), (copy, 1)
    timers = [partial(one_pass, decoder, cache, rows) for decoder, rows in passes]
    plain, check, draft = interleaved_quartiles(timers, range(ROUNDS))
    tokens = sum(AGREEMENT**i for i in range(LENGTH + 1))
    return tokens * plain / (LENGTH * draft + check)


@torch.inference_mode()
def one_pass(model: Decoder, cache: KVCache, rows: int) -> None:
    with model.lone_threads():
        model.greedy(TokenBatch([(0, POSITION, [0] * rows)], cache), cache)

"""What a variant can do, and the engine's own variants: the decoder over weights of so many bits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from offline.calibration.scoring.cost import CONTEXT, full_pass
from offline.evaluation.peers.base import LLAMA_CPP
from offline.fidelity.variants import REFERENCE, VARIANTS, FidelitySettings, differing_variants, llamacpp_obstacle
from offline.loaded_model import LoadedModel
from offline.records import log
from offline.settings import SettingsMistake
from server.engine import Activations, Checkpoint, Decoder, Quantization, TextCodec, TokenBatch, load_model

ROWS = 128
"""Rows of logits that are held at once: 78 MB for a vocabulary of 152,000."""
SAME = "would be the same as none/exact:"
NOT_QUANTISED: dict[Quantization, str] = {
    "auto": f"{SAME} this model's own weights have no few bits",
    "int8": f"{SAME} no matrix of this model has rows of whole groups of 32",
    "int4": f"{SAME} no matrix of this model has rows of whole groups of 32",
}


class Variant(Protocol):
    """A model in one form."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str:
        """What products are computed from, in words."""
        ...

    @property
    def weight_bits(self) -> float:
        """Average bits of a weight, scales included."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        ...

    def logits(self, ids: list[int]) -> Iterator[Tensor]:
        """Next-token logits in fp32 after each of the ids, in pieces [up to `ROWS`, vocabulary_size]."""
        ...

    def decode_step(self) -> Callable[[], object]:
        """A function that computes one greedy token after `CONTEXT` others, whenever it is called."""
        ...


@dataclass(frozen=True)
class DecoderVariant:
    """The engine's decoder, as the server runs it."""

    name: str
    model: Decoder
    weight_bits: float
    num_bytes: int

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, activations: Activations) -> "DecoderVariant":
        model = Decoder(checkpoint, activations)
        if model.native:
            return cls(name, model, model.native.weight_bits, model.native.nbytes)
        if checkpoint.quantized:
            log.info("%s: there are no kernels to run it, its weights are dequantised and activations exact", name)
        # torch computes with all weights in the checkpoint's dtype; a head that is the embeddings counts once.
        shapes = {id(weight): weight.shape for weight in checkpoint.weights.values()}
        shapes |= {id(weight): weight.shape for weight in checkpoint.quantized.values()}
        size = checkpoint.dtype.itemsize
        return cls(name, model, 8.0 * size, size * sum(shape.numel() for shape in shapes.values()))

    @property
    def precision(self) -> str:
        return self.model.precision

    def logits(self, ids: list[int]) -> Iterator[Tensor]:
        cache = self.model.new_cache(1, len(ids))
        with self.model.lone_threads():
            hidden = self.model.forward(TokenBatch([(0, 0, ids)], cache), cache)
            for rows in hidden.split(ROWS):
                yield self.model.logits(rows)

    def decode_step(self) -> Callable[[], object]:
        position = min(CONTEXT, self.model.config.max_length - 1)
        cache = self.model.new_cache(1, position + 1)
        return partial(full_pass, self.model, cache, position, 1)


def load(settings: FidelitySettings, quantization: Quantization, dtype: torch.dtype | None) -> Checkpoint:
    return load_model(settings.model, dtype, settings.torch_device, settings.trust_remote_code, quantization)


def load_reference(settings: FidelitySettings) -> tuple[LoadedModel, DecoderVariant]:
    """The model whose answers are read, and the same as a variant."""
    checkpoint = load(settings, "none", torch.float32)
    variant = DecoderVariant.of(REFERENCE, checkpoint, "exact")
    checkpoint.forget_weights()
    return LoadedModel(checkpoint, variant.model, TextCodec(checkpoint.tokenizer)), variant


def load_variants(settings: FidelitySettings, reference: Checkpoint, longest: int) -> list[Variant]:
    """The variants that are asked for, or those that differ, for texts of up to `longest` tokens.

    Raises `SettingsMistake` for one that does not apply to this model.
    """
    names = settings.variants or differing_variants(load(settings, "auto", settings.torch_dtype))
    made: dict[str, Variant] = {}
    if LLAMA_CPP in names:
        try:
            made[LLAMA_CPP] = llamacpp_variant(settings, reference, longest)
        except SettingsMistake as mistake:
            if settings.variants:
                raise
            log.info("left out: %s", mistake)
    own = [name for name in names if name in VARIANTS]
    for quantization in dict.fromkeys(VARIANTS[name][0] for name in own):
        group = [name for name in own if VARIANTS[name][0] == quantization]
        made |= {variant.name: variant for variant in decoder_variants(settings, quantization, group)}
    return [made[name] for name in names if name in made]


def decoder_variants(
    settings: FidelitySettings, quantization: Quantization, names: Sequence[str]
) -> list[DecoderVariant]:
    """Variants of the same weights, which are loaded once and dropped when they are packed."""
    checkpoint = load(settings, quantization, settings.torch_dtype)
    if quantization != "none" and not checkpoint.quantized:
        raise SettingsMistake(f"--variants: {names[0]} {NOT_QUANTISED[quantization]}")
    variants = [DecoderVariant.of(name, checkpoint, VARIANTS[name][1]) for name in names]
    checkpoint.forget_weights()
    return variants


def llamacpp_variant(settings: FidelitySettings, reference: Checkpoint, longest: int) -> Variant:
    obstacle = llamacpp_obstacle(reference)
    if obstacle:
        raise SettingsMistake(f"--variants: {obstacle}")
    # Imported late: without the extra, the module cannot be.
    from offline.fidelity.llamacpp import LlamaCppVariant

    return LlamaCppVariant(reference, longest, keeps_fp32=settings.torch_dtype == torch.float32)

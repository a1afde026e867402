"""The `fidelity` command: what few bits and rounded activations cost in fidelity, and what they give in speed.

The reference, the model's weights in fp32, answers prompts; every variant then reads the same prompts and answers.
"""

import torch

from offline.evaluation.summary import aligned
from offline.fidelity.models import Variant, load_reference, load_variants
from offline.fidelity.reading import Reading, num_scored, read
from offline.fidelity.texts import answered, in_turn, num_places, usable_ids
from offline.fidelity.timing import median_seconds
from offline.fidelity.variants import FidelitySettings
from offline.prompts import read_prompts
from offline.records import Strict, log, versions
from server.engine import kernel_build, public_name, use_threads


class FidelityRow(Strict):
    """One variant; the first row is the reference."""

    variant: str
    precision: str
    weight_bits: float
    megabytes: float
    agreement: float
    """Share of all places with the reference's first choice."""
    loss: float
    """Mean negative log-likelihood of the prompts' tokens, in nats."""
    loss_change: float
    """The loss over the reference's, less 1."""
    step_seconds: float
    """Median of a decode step of one row."""
    tokens_per_second: float


class Fidelity(Strict):
    """The JSON object that the command prints, of the format `knnssd-fidelity/1`."""

    format: str = "knnssd-fidelity/1"
    model: str
    device: str
    kernels: str
    threads: int
    seed: int
    max_new_tokens: int
    prompts: int
    places: int
    """Places at which first choices are compared."""
    scored: int
    """Of these, places in prompts, whose next tokens the loss is of."""
    versions: dict[str, str]
    results: list[FidelityRow]


def fidelity(settings: FidelitySettings) -> Fidelity:
    """Runs the command; raises one of the errors that `main` turns into a line."""
    prompts = read_prompts(settings.prompts)
    threads = use_threads(settings.threads)
    log.info("threads: %s", threads)
    loaded, reference = load_reference(settings)
    prompt_ids = usable_ids(loaded, in_turn(prompts, settings.seed), settings.max_new_tokens)
    longest = max(map(len, prompt_ids)) + settings.max_new_tokens
    variants: list[Variant] = [reference, *load_variants(settings, loaded.checkpoint, longest)]
    texts = answered(loaded, prompt_ids, settings.max_new_tokens, settings.places)
    readings = {variant.name: read(variant, texts) for variant in variants}
    seconds = median_seconds({variant.name: variant.decode_step() for variant in variants}, settings.seed)
    return Fidelity(
        model=settings.model or public_name(None),
        device=torch.cuda.get_device_name() if loaded.checkpoint.device.type == "cuda" else "cpu",
        kernels=kernel_build() if reference.model.native else "none",
        threads=threads.count,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        prompts=len(texts),
        places=sum(map(num_places, texts)),
        scored=num_scored(texts),
        versions=versions(),
        results=[
            row(variant, readings[variant.name], readings[reference.name], seconds[variant.name])
            for variant in variants
        ],
    )


def row(variant: Variant, reading: Reading, reference: Reading, seconds: float) -> FidelityRow:
    return FidelityRow(
        variant=variant.name,
        precision=variant.precision,
        weight_bits=variant.weight_bits,
        megabytes=variant.num_bytes / 1e6,
        agreement=reading.agreement(reference),
        loss=reading.loss,
        loss_change=reading.loss / reference.loss - 1,
        step_seconds=seconds,
        tokens_per_second=1 / seconds,
    )


HEAD = ["variant", "precision", "bits", "MB", "agreement", "loss", "change", "step, ms", "tokens/s"]


def table(rows: list[FidelityRow]) -> str:
    """The rows as plain text in aligned columns."""
    return aligned(
        [HEAD]
        + [
            [
                row.variant,
                row.precision,
                f"{row.weight_bits:.2f}",
                f"{row.megabytes:.0f}",
                f"{row.agreement:.2%}",
                f"{row.loss:.4f}",
                f"{row.loss_change:+.2%}",
                f"{1000 * row.step_seconds:.2f}",
                f"{row.tokens_per_second:.1f}",
            ]
            for row in rows
        ]
    )

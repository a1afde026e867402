"""`generate` of transformers as a peer: plain, with its prompt lookup, and with its early exit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from offline.evaluation.measure import Answer, Job, Runner, end_ids, model_sampling
from offline.loaded_model import LoadedModel
from offline.settings import EvaluationSettings
from server.engine import Checkpoint

LOOKUP_TOKENS = 10
ASSISTED: dict[str, Callable[[int], dict[str, int]]] = {
    "transformers": lambda num_layers: {},
    "transformers-lookup": lambda num_layers: {"prompt_lookup_num_tokens": LOOKUP_TOKENS},
    "transformers-early-exit": lambda num_layers: {"assistant_early_exit": max(num_layers // 4, 1)},
}
"""The options that each method gives to `generate`, for a model of so many layers."""


def assisted_runners(
    names: Sequence[str], loaded: LoadedModel, settings: EvaluationSettings, longest: int
) -> dict[str, Runner]:
    """Runners of some methods of `ASSISTED` over one shared model; their prompts may have any length."""
    model = hf_model(loaded.checkpoint)
    return {name: assisted_runner(name, model, loaded, settings) for name in names}


def hf_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model of transformers over the weights that the engine was made of, dequantised where they have few bits."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(checkpoint.described, dtype=checkpoint.dtype)
    model.load_state_dict(checkpoint.dense_weights(), strict=False, assign=True)
    model.tie_weights()
    # Its RoPE tables are no weights, and on the meta device they were never made.
    model.model.rotary_emb = type(model.model.rotary_emb)(checkpoint.described)
    return model.to(checkpoint.device).eval()


def assisted_runner(name: str, model: PreTrainedModel, loaded: LoadedModel, settings: EvaluationSettings) -> Runner:
    """Answers by `generate` with one method's options; the prompts of a batch are padded on the left."""
    options = ASSISTED[name](loaded.model.config.num_layers)
    eos_ids = sorted(end_ids(loaded, settings))
    pad = loaded.checkpoint.tokenizer.pad_token_id
    pad = pad if pad is not None else (eos_ids or [0])[0]
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        drawn = model_sampling(loaded, settings)
        sampling = {"do_sample": True, "temperature": drawn.temperature, "top_k": drawn.top_k, "top_p": drawn.top_p}
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens, eos_token_id=eos_ids or None, pad_token_id=pad, **sampling, **options
    )

    def run(jobs: Sequence[Job]) -> list[Answer]:
        width = max(len(job.ids) for job in jobs)
        ids = torch.tensor([[pad] * (width - len(job.ids)) + job.ids for job in jobs], device=model.device)
        mask = torch.tensor([[0] * (width - len(job.ids)) + [1] * len(job.ids) for job in jobs], device=model.device)
        torch.manual_seed(jobs[0].seed)
        output = model.generate(ids, attention_mask=mask, generation_config=config)
        return [Answer(upto_end(row, eos_ids)) for row in output[:, width:].tolist()]

    return run


def upto_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """The ids up to the first end token: `generate` pads what comes after it."""
    end = next((i for i, token in enumerate(ids) if token in eos_ids), len(ids))
    return ids[: end + 1]

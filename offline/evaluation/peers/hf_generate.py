"""What is compared with beside the engine: llama.cpp, and `generate` of transformers, plain and with its own
self-speculation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from offline.evaluation.measure import Answer, Job, Runner
from offline.loaded_model import Workbench
from offline.settings import EvaluationSettings

LOOKUP_TOKENS = 10
ASSISTED: dict[str, Callable[[int], dict[str, int]]] = {
    "transformers": lambda num_layers: {},
    "transformers-lookup": lambda num_layers: {"prompt_lookup_num_tokens": LOOKUP_TOKENS},
    "transformers-early-exit": lambda num_layers: {"assistant_early_exit": max(num_layers // 4, 1)},
}
"""Method -> options of `generate` for a model of so many layers."""
LLAMA_CPP = "llama-cpp"


def peer_runners(
    names: Sequence[str], bench: Workbench, settings: EvaluationSettings, longest: int
) -> dict[str, Runner]:
    """Runners of the peers among `names` in the engine's dtype, for prompts of up to `longest` tokens."""
    runners = assisted_runners([name for name in names if name in ASSISTED], bench, settings)
    if LLAMA_CPP in names:
        # An extra: `settings` has seen that it is there.
        from offline.evaluation.peers.llamacpp import llamacpp_runner

        runners[LLAMA_CPP] = llamacpp_runner(bench, settings, longest)
    return runners


def assisted_runners(names: Sequence[str], bench: Workbench, settings: EvaluationSettings) -> dict[str, Runner]:
    """Runners of transformers, over one shared model."""
    if not names:
        return {}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=bench.checkpoint.dtype, trust_remote_code=settings.trust_remote_code
    )
    model.to(bench.checkpoint.device).eval()
    return {name: assisted_runner(name, model, bench, settings) for name in names}


def assisted_runner(name: str, model: PreTrainedModel, bench: Workbench, settings: EvaluationSettings) -> Runner:
    options = ASSISTED[name](bench.model.config.num_layers)
    eos_ids = sorted(end_ids(bench, settings))
    pad = bench.checkpoint.tokenizer.pad_token_id
    pad = pad if pad is not None else (eos_ids or [0])[0]
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
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


def end_ids(bench: Workbench, settings: EvaluationSettings) -> frozenset[int]:
    """The tokens that end an answer."""
    return frozenset() if settings.ignore_eos else bench.checkpoint.eos_ids


def upto_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """Without the padding after the first end token."""
    end = next((i for i, token in enumerate(ids) if token in eos_ids), len(ids))
    return ids[: end + 1]


def runnable(name: str, runner: Runner, jobs: Sequence[Job], report: Callable[[str], None]) -> bool:
    """Whether a peer gets through one batch; where not, one line says why."""
    try:
        runner(jobs)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        report(f"{name} is left out, it cannot run here: {reason}")
        return False
    return True

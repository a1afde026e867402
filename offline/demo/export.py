"""Writes a trained checkpoint as the Hugging Face folder that the server serves."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM


def export(folder: Path, out: Path) -> None:
    """Reads `folder/checkpoint.pt` and `folder/tokenizer`; writes bf16 weights, config and tokenizer to `out`."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = LlamaForCausalLM(LlamaConfig(**state["config"]))
    missing, unexpected = model.load_state_dict(state["network"], strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"the checkpoint does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    # Greedy text of so small a model runs in circles; these defaults are for clients that name none.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.5,
        top_p=0.9,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(out)

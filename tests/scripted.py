"""A model that writes what it is told: after each token comes the one that its script names, whatever came before.

Its layers add nothing to an embedding that is one for each token, so that its output layer is a table of successors.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import byte_tokenizer, tiny_config

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tokens that reasoning models have for what they mark; they are shown, as those of text are."""
HIDDEN_SIZE = 288
Script = dict[str, dict[str, float]]
"""Scores of the tokens that may follow a token: `{"a": {"b": 9}}`."""


def save_scripted_model(folder: Path, template: str, script: Script) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(MARKS))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = tiny_config(
        vocab_size=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=9,
        max_position_embeddings=4096,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1 if name.endswith("norm.weight") else 0)
        model.get_input_embeddings().weight.copy_(torch.eye(HIDDEN_SIZE))
        for token, scores in script.items():
            for follower, score in scores.items():
                ids = tokenizer.encode(follower + token, add_special_tokens=False)
                assert len(ids) == 2, (token, follower)
                model.get_output_embeddings().weight[ids[0], ids[1]] = score
    model.save_pretrained(folder)
    return folder

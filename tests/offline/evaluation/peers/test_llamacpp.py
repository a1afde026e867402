"""llama.cpp as a peer: its GGUF file is the same model, for each shape that is converted."""

from pathlib import Path

import pytest
from transformers import PreTrainedConfig, Qwen2Config, Qwen3Config

from offline.__main__ import main
from offline.evaluation.evaluate import Evaluation
from offline.evaluation.peers import base
from tests.tiny import save_random_model, tiny_config

pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")

SHAPE = {
    name: value
    for name, value in tiny_config().to_dict().items()
    if name.startswith("num_") or name.endswith(("_size", "_id", "_embeddings"))
}
SHAPES = {
    "llama": tiny_config(),
    "llama with tied embeddings and wide heads": tiny_config(tie_word_embeddings=True, head_dim=16),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}


def evaluate(model: Path, prompts: Path, *options: str) -> int:
    common = ["--model", str(model), "--prompts", str(prompts), "--methods", "llama-cpp", "--max-new-tokens", "12"]
    return main(["evaluate", *common, "--json", *options])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one two three"}\n{"prompt": "once upon a time there was"}\n')
    return path


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_it_writes_what_plain_decoding_writes(
    config: PreTrainedConfig, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(save_random_model(tmp_path / "model", config), prompts, "--dtype", "float32", "--ignore-eos") == 0
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    rows = {row.method: row for row in found.results if row.domain == "mean"}
    assert rows["llama-cpp"].exact == 1.0
    assert rows["llama-cpp"].tokens == rows["plain"].tokens == 2 * 12
    assert rows["llama-cpp"].decode_speedup is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--temperature", "0.5"], "answers greedily, one prompt at a time"),
        (["--batch-size", "2"], "answers greedily, one prompt at a time"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    options: list[str], reason: str, tiny_checkpoint: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_checkpoint, prompts, *options) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            tiny_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
            "runs models with plain RoPE here, not 'linear'",
        ),
        (tiny_config(attention_bias=True), "cannot load this model: llama_model_load: error"),
    ],
    ids=["scaled RoPE", "biases that its Llama lacks"],
)
def test_a_model_that_it_cannot_run_is_one_line(
    config: PreTrainedConfig, reason: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(save_random_model(tmp_path / "model", config), prompts) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_missing_extra_is_one_line(
    tiny_checkpoint: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert evaluate(tiny_checkpoint, prompts) == 2
    error = capsys.readouterr().err
    assert "--methods: llama-cpp needs its extra: pip install 'knn-ssd-server[llama-cpp]'" in error
    assert error.count("\n") == 1

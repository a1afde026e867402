"""Flags and variables: precedence, help, and one clear line for what is wrong."""

from pathlib import Path

import pytest
import torch
from pydantic_settings import SettingsError

from server.engine import DEFAULT_ARTIFACT
from server.settings import read_settings


def test_defaults_serve_the_default_model() -> None:
    settings = read_settings([])
    assert settings.source.name == "SmolLM2-135M-Instruct"
    assert settings.source.model is None
    assert settings.source.artifact == DEFAULT_ARTIFACT
    assert settings.engine_config.method == "cascade"
    assert settings.app_config.api_keys == ()
    assert settings.queue_limits.max_sequences == 8 + settings.max_queue


def test_a_model_without_an_artifact_drafts_by_what_needs_none() -> None:
    settings = read_settings(["--model", "some/model-7b", "--dtype", "bfloat16"])
    assert settings.source.name == "model-7b"
    assert settings.source.artifact is None
    assert settings.source.dtype is torch.bfloat16
    assert settings.engine_config.method == "cascade"


@pytest.mark.parametrize("name", ["files/model-7b.gguf", "org/repo:model-7b.gguf", "org/repo:q4/model-7b.gguf"])
def test_a_files_ending_is_not_part_of_the_models_name(name: str) -> None:
    assert read_settings(["--model", name]).source.name == "model-7b"


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNNSSD_MAX_BATCH", "3")
    monkeypatch.setenv("KNNSSD_API_KEYS", "a, b,")
    monkeypatch.setenv("KNNSSD_CORS_ORIGINS", "")
    assert read_settings([]).max_batch == 3
    assert read_settings(["--max-batch", "5"]).max_batch == 5
    assert read_settings([]).app_config.api_keys == ("a", "b")
    assert read_settings([]).app_config.cors_origins == ()


def test_threads_are_those_asked_for_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings([]).source.threads is None
    assert read_settings(["--threads", "3"]).source.threads == 3
    monkeypatch.setenv("KNNSSD_THREADS", "5")
    assert read_settings([]).source.threads == 5
    assert read_settings(["--threads", "3"]).source.threads == 3


def test_weights_keep_their_bits_and_a_copy_is_made_where_it_pays() -> None:
    source = read_settings([]).source
    assert (source.quantization, source.activations, source.draft_weights) == ("auto", "auto", "auto")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("quantization", ["auto", "none", "int8", "int4"]),
        ("activations", ["auto", "int8", "fine", "exact"]),
        ("draft-weights", ["none", "int8", "int4", "auto"]),
    ],
)
def test_bits_are_those_asked_for(flag: str, values: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = flag.replace("-", "_")
    for value in values:
        assert getattr(read_settings([f"--{flag}", value]).source, name) == value
        monkeypatch.setenv(f"KNNSSD_{name.upper()}", value)
        assert getattr(read_settings([]).source, name) == value


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    assert read_settings(["--api-key-file", str(path), "--api-keys", "zero"]).app_config.api_keys == (
        "zero",
        "one",
        "two",
    )
    assert "zero" not in repr(read_settings(["--api-keys", "zero"]))
    path.write_text("\n")
    for broken in (path, tmp_path / "absent"):
        with pytest.raises(SettingsError, match="--api-key-file"):
            _ = read_settings(["--api-key-file", str(broken)]).app_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], r"--port \(KNNSSD_PORT\): .*65535"),
        (["--max-batch", "many"], "--max-batch .* integer"),
        (["--threads", "0"], r"--threads \(KNNSSD_THREADS\): .*greater than or equal to 1"),
        (["--threads", "-2"], "--threads .*greater than or equal to 1"),
        (["--threads", "1025"], "--threads .*less than or equal to 1024"),
        (["--threads", "1.5"], "--threads .* integer"),
        (["--method", "magic"], "--method .*'cascade'"),
        (["--method", "skip", "--model", "m"], "--method skip needs --artifact"),
        (["--method", "low-bit", "--draft-weights", "none"], "--method low-bit needs --draft-weights; use .* int4"),
        (["--quantization", "int2"], r"--quantization \(KNNSSD_QUANTIZATION\): .*'auto', 'none', 'int8' or 'int4'"),
        (["--activations", "none"], "--activations .*'auto', 'int8', 'fine' or 'exact'"),
        (["--draft-weights", "exact"], "--draft-weights .*'none', 'int8', 'int4' or 'auto'"),
        (["--unknown", "1"], "unrecognized arguments: --unknown"),
        (["--port"], "expected one argument"),
    ],
)
def test_bad_settings_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read_settings(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(SettingsError, match="has no CUDA device"):
        read_settings(["--device", "cuda"])


def test_help_names_each_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--model", "--artifact", "--max-batch", "KNNSSD_"))


def test_what_keys_keep_apart_is_not_written_to_one_file(tmp_path: Path) -> None:
    flags = ["--history-file", str(tmp_path / "counts")]
    assert read_settings(flags).source.history_file == tmp_path / "counts"
    with pytest.raises(SettingsError, match="with API keys it needs --share-history"):
        read_settings([*flags, "--api-keys", "a"])
    assert read_settings([*flags, "--api-keys", "a", "--share-history"]).source.history_file

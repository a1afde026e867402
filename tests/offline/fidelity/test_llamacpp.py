"""llama.cpp as a variant: over an fp32 file it is the reference, over a quantised one it has the file's bits."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from offline.__main__ import main
from offline.evaluation.peers import base
from offline.fidelity.fidelity import Fidelity
from tests.gguf_files import write_gguf

pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Longer than what is read at once."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text('{"prompt": "%s"}\n{"prompt": "a short one"}' % ("some words " * 15))
    return path


def compare(model: Path, prompts: Path, *options: str) -> int:
    return main(["fidelity", "--model", str(model), "--prompts", str(prompts), "--max-new-tokens", "16", *options])


def test_an_fp32_file_is_the_reference(
    wide: Path, long_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "model.gguf", wide, Type.F32)
    assert compare(tmp_path / "model.gguf", long_prompts, "--dtype", "float32", "--variants", "llama-cpp") == 0
    found = Fidelity.model_validate_json(capsys.readouterr().out)
    reference, peer = found.results
    assert found.places > 180
    assert peer.variant == "llama-cpp" and peer.agreement == 1
    assert peer.loss == pytest.approx(reference.loss, rel=1e-4)
    assert peer.weight_bits == 32 and peer.tokens_per_second > 0
    assert peer.precision.startswith("llama-cpp-python ") and "float32 cache" in peer.precision


def test_a_quantised_file_keeps_its_bits_and_is_compared_unasked(
    wide: Path, long_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "model.gguf", wide, Type.Q4_0)
    assert compare(tmp_path / "model.gguf", long_prompts) == 0
    rows = {row.variant: row for row in Fidelity.model_validate_json(capsys.readouterr().out).results}
    assert list(rows) == [
        "reference",
        "none/exact",
        "auto/exact",
        "auto/fine",
        "auto/int8",
        "int8/fine",
        "int4/fine",
        "llama-cpp",
    ]
    assert rows["llama-cpp"].weight_bits == pytest.approx(4.5, rel=0.03)
    assert rows["llama-cpp"].agreement > 0.8
    assert rows["llama-cpp"].loss == pytest.approx(rows["reference"].loss, rel=0.05)


def test_a_file_that_it_cannot_read_is_left_out_unless_asked_for(
    wide: Path,
    long_prompts: Path,
    tmp_path: Path,
    messages: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.gguf"
    # It expects a number there; whoever does not ask for it never knows.
    write_gguf(path, wide, Type.Q4_0, {"general.file_type": "of its own"})
    assert compare(path, long_prompts) == 0
    assert "left out: llama-cpp cannot load this model" in messages.text
    assert '"variant":"llama-cpp"' not in capsys.readouterr().out
    assert compare(path, long_prompts, "--variants", "llama-cpp") == 2
    assert "llama-cpp cannot load this model" in capsys.readouterr().err


def test_a_missing_extra_is_one_line_and_no_default(
    wide: Path,
    long_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_gguf(tmp_path / "model.gguf", wide, Type.Q4_0)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert compare(tmp_path / "model.gguf", long_prompts, "--variants", "llama-cpp") == 2
    error = capsys.readouterr().err
    assert "--variants: llama-cpp needs its extra: pip install 'knn-ssd-server[llama-cpp]'" in error
    assert error.count("\n") == 1
    assert compare(tmp_path / "model.gguf", long_prompts) == 0
    names = [row.variant for row in Fidelity.model_validate_json(capsys.readouterr().out).results]
    assert names[-1] == "int4/fine"

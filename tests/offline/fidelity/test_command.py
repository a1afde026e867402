"""`fidelity` end to end on tiny models: what its rows say of each variant, and every kind of wrong input."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from offline.__main__ import main
from offline.evaluation.peers import base
from offline.fidelity.fidelity import Fidelity, FidelityRow
from server.engine.model import kernels
from tests.gguf_files import write_gguf
from tests.tiny import save_random_model, tiny_config

Rows = dict[str, FidelityRow]
Compare = Callable[..., Fidelity]


@pytest.fixture(scope="module")
def quantised(wide: Path) -> Path:
    write_gguf(wide / "model.gguf", wide, Type.Q4_0)
    return wide / "model.gguf"


@pytest.fixture
def compare(prompts: Path, capsys: pytest.CaptureFixture[str]) -> Compare:
    """Runs the command; it has to work."""

    def run(model: Path, *options: str) -> Fidelity:
        few = ["--places", "400", "--max-new-tokens", "16"]
        assert main(["fidelity", "--model", str(model), "--prompts", str(prompts), *few, *options]) == 0
        return Fidelity.model_validate_json(capsys.readouterr().out)

    return run


def by_name(found: Fidelity) -> Rows:
    return {row.variant: row for row in found.results}


def test_a_files_own_bits_are_exact_and_fewer_bits_cost_more(quantised: Path, compare: Compare) -> None:
    names = "auto/exact,auto/int8,int8/exact,int4/exact"
    rows = by_name(compare(quantised, "--variants", names, "--dtype", "float32"))
    assert list(rows) == ["reference", *names.split(",")]
    assert rows["reference"].agreement == 1 and rows["reference"].loss_change == 0
    assert rows["auto/exact"].agreement == 1
    assert rows["auto/exact"].loss == pytest.approx(rows["reference"].loss, rel=1e-5)
    assert rows["auto/exact"].loss_change == pytest.approx(0, abs=1e-5)
    if kernels.build():
        assert rows["auto/int8"].loss != rows["auto/exact"].loss
        assert rows["auto/exact"].precision == "Q4_0 weights, float32 activations, float32 cache"
        assert rows["auto/int8"].precision == "Q4_0 weights, 8-bit activations, float32 cache"
        bits = [rows[name].weight_bits for name in ("auto/int8", "int4/exact", "int8/exact", "reference")]
        assert bits == pytest.approx([4.5, 5, 8.5, 32], rel=0.03)


def test_four_bits_lose_more_than_eight(wide: Path, compare: Compare) -> None:
    rows = by_name(compare(wide))
    assert list(rows) == ["reference", "int8/fine", "int4/fine"], "in fp32, none/exact is the reference itself"
    assert rows["int4/fine"].agreement < rows["int8/fine"].agreement - 0.05 < 0.95
    assert abs(rows["int4/fine"].loss_change) > 2 * abs(rows["int8/fine"].loss_change) > 0
    if not kernels.build():
        return
    assert rows["int4/fine"].megabytes < rows["int8/fine"].megabytes < rows["reference"].megabytes / 3


def test_figures_belong_together(tiny_checkpoint: Path, compare: Compare) -> None:
    found = compare(tiny_checkpoint, "--dtype", "bfloat16", "--seed", "3")
    assert [row.variant for row in found.results] == ["reference", "none/exact", "int8/fine", "int4/fine"]
    assert (found.format, found.seed, found.device, found.max_new_tokens) == ("knnssd-fidelity/1", 3, "cpu", 16)
    assert 400 <= found.places < 400 + 55 + 16, "no text more than are needed"
    assert 0 < found.scored <= found.places - found.prompts
    for row in found.results:
        assert row.tokens_per_second == pytest.approx(1 / row.step_seconds)
        assert row.loss_change == pytest.approx(row.loss / found.results[0].loss - 1)
        share = row.agreement * found.places
        assert share == pytest.approx(round(share)), "a share of places is a whole number of them"
    assert by_name(found)["none/exact"].precision == "bfloat16"
    assert by_name(found)["none/exact"].megabytes < 0.6 * found.results[0].megabytes


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_it_prints_one_line_and_a_table_beside_it_and_draws(
    ending: str, start: bytes, wide: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "new" / f"fidelity.{ending}"
    few = "--places 60 --max-new-tokens 4 --variants int4/int8,none/exact,int4/int8"
    assert main(f"fidelity --model {wide} -p {prompts} {few} --plot {plot}".split()) == 0
    output = capsys.readouterr()
    rows = Fidelity.model_validate_json(output.out).results
    assert [row.variant for row in rows] == ["reference", "int4/int8", "none/exact"]
    assert output.out.count("\n") == 1
    lines = output.err.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("variant"))
    assert [line.split()[0] for line in lines[head + 1 :]] == ["reference", "int4/int8", "none/exact"]
    assert len({len(line) for line in lines[head:]}) == 1
    assert plot.read_bytes().startswith(start)
    if ending == "svg":
        # matplotlib draws letters as paths, and leaves the text as a comment.
        assert all(f"{row.variant}, {row.weight_bits:.1f} bits" in plot.read_text() for row in rows)


def test_without_kernels_rows_say_that_weights_are_dequantised(
    quantised: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    found = compare(quantised, "--variants", "none/exact,auto/int8,int4/int8")
    rows = by_name(found)
    assert found.kernels == "none"
    assert rows["auto/int8"].precision == "Q4_0 weights dequantised to bfloat16"
    assert rows["int4/int8"].precision == "int4 weights dequantised to bfloat16"
    assert [row.weight_bits for row in found.results] == [32, 16, 16, 16]
    assert rows["none/exact"].megabytes == rows["auto/int8"].megabytes == rows["reference"].megabytes / 2
    assert rows["auto/int8"].agreement == rows["none/exact"].agreement
    assert "int4/int8: there are no kernels to run it" in messages.text


def test_too_few_prompts_are_used_and_told(
    tiny_checkpoint: Path, compare: Compare, messages: pytest.LogCaptureFixture
) -> None:
    found = compare(tiny_checkpoint, "--variants", "int8/int8", "--places", "100000")
    assert found.prompts == 12
    assert f"too few for --places 100000: all 12 of them have {found.places}" in messages.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--variants int3/int8", "--variants: unknown variant 'int3/int8', known are none/exact, auto/exact"),
        ("--variants none/int8", "--variants: unknown variant 'none/int8'"),
        ("--variants int4", "--variants: unknown variant 'int4'"),
        ("--variants ,", "--variants: List should have at least 1 item"),
        ("--variants auto/int8", "auto/int8 would be the same as none/exact: this model's own weights have no few"),
        ("--variants none/exact,llama-cpp", "llama-cpp reads GGUF files, and this model is a folder"),
        ("--plot plot.pdf", "--plot: must end in .svg or .png"),
        ("--places 0", "--places: Input should be greater than or equal to 1"),
        ("--max-new-tokens 255", "no prompt is within 2 to 1 tokens"),
        ("--quantization int4", "unrecognized arguments: --quantization int4"),
    ],
)
def test_wrong_input_is_one_line(
    options: str,
    reason: str,
    tiny_checkpoint: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: True)
    assert main(f"fidelity --model {tiny_checkpoint} --prompts {prompts} {options}".split()) == 2
    output = capsys.readouterr()
    assert reason in output.err and not output.out
    assert output.err.startswith("knn-ssd-offline: ") and output.err.count("\n") == 1


def test_a_model_that_cannot_be_rounded_is_one_line(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_random_model(tmp_path, tiny_config(hidden_size=16, intermediate_size=48))
    assert main(["fidelity", "--model", str(model), "--prompts", str(prompts), "--variants", "int4/int8"]) == 2
    assert "no matrix of this model has rows of whole groups of 32" in capsys.readouterr().err

"""The command line end to end on a tiny model: calibrate, resume, evaluate, and every kind of wrong input."""

import json
import random
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from offline.__main__ import main
from offline.calibration.scoring import drafts
from offline.calibration.search.search import DomainDrafts
from offline.calibration.search.trials import Trial
from offline.calibration.search.verdicts import Verdicts
from offline.evaluation.batches import stream
from offline.evaluation.evaluate import Evaluation
from offline.evaluation.measure import Job
from offline.evaluation.methods import Candidate, known_methods
from offline.evaluation.peers.base import LLAMA_CPP
from offline.prompts import MIXED
from offline.records import log
from server.engine import (
    Checkpoint,
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
    TextCodec,
    kernel_build,
)
from tests.tiny import save_random_model, tiny_config

KNOWN = [name for name in known_methods() if name != LLAMA_CPP and not Candidate.of(name).needs_draft_weights]
METHODS = [*KNOWN, "recycling:4", "knn@sql", "cascade@another"]
FAST = ["--budget", "6", "--continuation-tokens", "12", "--search-prompts", "3", "--heldout-prompts", "3"]


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", log.name)
    return caplog


def write_prompts(path: Path, is_labelled: bool = True, count: int = 12) -> Path:
    chance = random.Random(0)
    vocabularies = {"digits": "0123456789", "letters": "abcdefghij"}
    lines = []
    for domain, letters in vocabularies.items():
        for _ in range(count):
            record = {"prompt": " ".join("".join(chance.choices(letters, k=5)) for _ in range(5))}
            lines.append(json.dumps(record | ({"domain": domain} if is_labelled else {})))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "artifact"
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--measure-prompts", "1"]
    assert main(["calibrate", *common, "--out", str(out), *FAST]) == 0
    return out


def test_calibration_makes_an_artifact_that_routes(
    calibrated: Path, checkpoint: Checkpoint, model: Decoder, codec: TextCodec
) -> None:
    artifact = RoutingArtifact.load(calibrated)
    artifact.check_model(checkpoint.fingerprint, codec.template_hash, calibrated)
    manifest = artifact.manifest
    assert [record.name for record in manifest.domains] == ["digits", "letters"]
    records = [*manifest.domains, manifest.mixed]
    assert all(record.measured_speedup for record in records if not record.draft.mask.is_empty), "drafts are measured"
    assert manifest.versions.keys() >= {"torch", "transformers"}
    ids = codec.encode_chat([{"role": "user", "content": "01234 56789 40312"}])
    request = GenerationRequest(ids, SamplingParams(), StopConditions(4))
    sequence = Engine(model, EngineConfig(max_batch=1), artifact).generate([request])[0]
    assert sequence.route.domain in {"digits", "letters", "other"}
    assert all(record.draft_of for record in [*manifest.domains, manifest.mixed])
    assert manifest.settings["budget"] == 6 and manifest.prompts_digest
    assert manifest.false_reject_rate is not None and manifest.false_accept_rate is not None


def test_finished_stages_are_reused_and_an_interrupted_one_is_made_again(
    calibrated: Path,
    tiny_checkpoint: Path,
    prompts: Path,
    messages: pytest.LogCaptureFixture,
) -> None:
    before = json.loads((calibrated / "manifest.json").read_text())
    anchors = (calibrated / "anchors.safetensors").read_bytes()
    (calibrated / "work" / "search.json").unlink()
    (calibrated / "manifest.json").unlink()
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--measure-prompts", "1"]
    assert main(["calibrate", *common, "--out", str(calibrated), *FAST]) == 0
    for stage in ("collect", "texts", "vocabulary", "drafts", "measured"):
        assert f"{stage}: finished before, reused" in messages.text
        assert f"{stage}: started" not in messages.text
    assert "search: started" in messages.text
    after = json.loads((calibrated / "manifest.json").read_text())
    assert after | {"created": ""} == before | {"created": ""}
    assert (calibrated / "anchors.safetensors").read_bytes() == anchors


def test_changed_settings_make_a_stage_again(
    calibrated: Path, tiny_checkpoint: Path, prompts: Path, messages: pytest.LogCaptureFixture
) -> None:
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--anchors-per-domain", "1"]
    assert main(["anchors", *common, "--out", str(calibrated), *FAST]) == 0
    assert "collect: finished before, reused" in messages.text
    assert "anchors: started" in messages.text


def test_unlabelled_prompts_get_domains(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", is_labelled=False)
    common = ["--model", str(tiny_checkpoint), "--prompts", str(path), "--out", str(tmp_path / "out")]
    assert main(["collect", *common, *FAST]) == 0
    assert "24 prompts of" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "work" / "clusters.json").read_text())
    assert len(record["clustering"]["names"]) == 24
    assert all(name.isascii() for name in record["clustering"]["names"])


def test_the_objective_of_the_paper_is_timed(tiny_checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--out", str(tmp_path), "--no-controls"]
    assert main(["search", *common, *FAST, "--budget", "2", "--objective", "wallclock"]) == 0
    (path,) = tmp_path.glob("work/digits-*/drafts.json")
    found = DomainDrafts.model_validate_json(path.read_bytes())
    assert not found.controls
    assert len(set(found.own.curve)) >= 1 and min(found.own.curve) > 0
    assert not list(tmp_path.glob("work/digits-*/trials-other-seed.jsonl"))


def test_evaluation_prints_a_table_and_one_json_line(
    tiny_checkpoint: Path, tiny_artifact_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", count=3)
    path.write_text(path.read_text().replace("digits", "stories").replace("letters", "sql"))
    code = main(
        f"evaluate --model {tiny_checkpoint} --artifact {tiny_artifact_folder} --prompts {path} "
        f"--methods {','.join(METHODS)} --max-new-tokens 12 --plot {tmp_path / 'plot.png'}".split()
    )
    lines = capsys.readouterr().out.strip().split("\n")
    assert code == 0
    found = Evaluation.model_validate_json(lines[-1])
    assert found.format == "knnssd-evaluate/1"
    assert [(row.method, row.domain) for row in found.results] == [
        (method, domain) for method in METHODS for domain in ("stories", "sql", "mean")
    ]
    assert all(row.exact == 1.0 for row in found.results)
    assert all(row.tokens > 0 and row.tokens_per_second > 0 for row in found.results)
    assert found.routing_accuracy is not None and 0 <= found.routing_accuracy <= 1
    assert lines[0].startswith("method")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_at_several_temperatures_prints_a_line_for_each_and_draws_them(
    tiny_checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    messages: pytest.LogCaptureFixture,
) -> None:
    plot = tmp_path / "temperatures.png"
    options = f"--json --methods lookup,transformers-lookup --limit 2 --max-new-tokens 8 --plot {plot}".split()
    common = ["--model", str(tiny_checkpoint), "-p", str(prompts)]
    assert main(["evaluate", *common, *options, "--temperatures", "1.5,0"]) == 0
    found = [Evaluation.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [each.temperature for each in found] == [1.5, 0.0]
    assert sum(message.startswith("threads: ") for message in messages.messages) == 1, "the model is loaded once"
    assert [{row.exact for row in each.results if row.method == "lookup"} for each in found] == [{1.0}, {1.0}]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_evaluation_in_batches_with_sampling_stays_exact(
    tiny_checkpoint: Path, tiny_artifact_folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        f"evaluate --model {tiny_checkpoint} --artifact {tiny_artifact_folder} -p {prompts} --json --batch-size 3 "
        "--methods knn,transformers,transformers-lookup --limit 3 --temperature 0.8 --max-new-tokens 8 "
        "--mix-ratio 0.5 --repeats 2".split()
    )
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    assert code == 0
    exact = {row.method: row.exact for row in found.results if row.domain == "mean"}
    assert exact == {"plain": 1.0, "knn": 1.0, "transformers": None}, "assisted generation takes one prompt at a time"
    assert found.routing_accuracy is None, "no label is a domain of this artifact"


@pytest.mark.skipif(kernel_build() == "none", reason="no kernels for this processor")
def test_low_bit_drafts_are_measured(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_random_model(tmp_path, tiny_config(head_dim=16))
    code = main(
        f"evaluate --model {folder} -p {prompts} --json --limit 2 --max-new-tokens 12 "
        "--methods low-bit --quantization int8 --draft-weights int4".split()
    )
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    assert code == 0
    (row,) = [row for row in found.results if (row.method, row.domain) == ("low-bit", "mean")]
    assert row.exact == 1.0
    assert row.acceptance is not None


def test_an_artifact_of_a_copy_is_measured_with_one_or_not_at_all(
    tiny_checkpoint: Path,
    tiny_artifact: RoutingArtifact,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixed = tiny_artifact.manifest.mixed
    mixed = mixed.model_copy(update={"draft": mixed.draft.model_copy(update={"is_low_bit": True})})
    manifest = tiny_artifact.manifest.model_copy(update={"mixed": mixed, "draft_weights": "int8"})
    RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {}).save(tmp_path)
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--artifact", str(tmp_path), "--limit", "1"]
    assert main(["evaluate", *common, "--methods", "knn"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("use --draft-weights int8")
    assert main(["evaluate", *common, "--methods", "lookup", "--max-new-tokens", "4"]) == 0


@pytest.mark.skipif(kernel_build() == "none", reason="no kernels for this processor")
def test_drafts_of_a_copy_and_of_vocabularies_are_calibrated(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "SIZES", (8, 16))
    folder, out = save_random_model(tmp_path, tiny_config(head_dim=16)), tmp_path / "out"
    common = ["--model", str(folder), "--prompts", str(prompts), "--out", str(out), "--no-controls"]
    assert main(["calibrate", *common, *FAST, "--draft-weights", "int4", "--measure-prompts", "1"]) == 0
    (path,) = out.glob("work/digits-*/trials-own.jsonl")
    tried = [Trial.model_validate_json(line).choice for line in path.read_text().splitlines()[1:]]
    assert {(each.vocabulary and each.vocabulary.size, each.is_low_bit) for each in tried[:6]} == {
        (size, is_low_bit) for size in (None, 8, 16) for is_low_bit in (False, True)
    }
    assert all(each.vocabulary.of == "digits" for each in tried if each.vocabulary)
    found = Verdicts.model_validate_json((out / "work" / "search.json").read_bytes())
    parts = {"mask", "patch", "vocabulary", "bits", "all"}
    assert all(set(each.parts) == parts for each in [*found.domains, found.mixed])
    assert found.mixed.choice.vocabulary is None or found.mixed.choice.vocabulary.of == MIXED
    manifest = RoutingArtifact.load(out).manifest
    assert manifest.draft_weights == "int4"
    for record, verdict in zip(manifest.records, [*found.domains, found.mixed], strict=True):
        assert (record.draft.max_draft, record.draft.is_low_bit) == (verdict.rule.max_draft, verdict.choice.is_low_bit)
        assert record.draft.vocabulary_size == (verdict.choice.vocabulary and verdict.choice.vocabulary.size)


@pytest.mark.parametrize("learns", [True, False])
def test_answers_draft_for_later_ones_only_where_that_is_asked(
    tiny_checkpoint: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    learns: bool,
) -> None:
    """Each method learns from its own answers; the first batch only warms up, or its answer would come twice."""
    budgets: list[int] = []

    class Watched(Engine):
        def __init__(self, model: Decoder, config: EngineConfig, artifact: RoutingArtifact | None = None) -> None:
            super().__init__(model, config, artifact)
            budgets.append(config.history_bytes)

    monkeypatch.setattr("offline.evaluation.evaluate.Engine", Watched)
    common = [
        "--model",
        str(tiny_checkpoint),
        "--prompts",
        str(prompts),
        "--methods",
        "suffix",
        "--max-new-tokens",
        "4",
    ]
    assert main(["evaluate", *common, "--limit", "3", "--json", *(["--learn"] if learns else [])]) == 0
    found = Evaluation.model_validate_json(capsys.readouterr().out)
    assert found.learn == learns
    assert sum(row.prompts for row in found.results if row.method == "plain" and row.domain != "mean") == 6 - learns
    assert budgets == 2 * [EngineConfig().history_bytes if learns else 0]


def test_methods_without_an_artifact_need_none(
    tiny_checkpoint: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--limit", "1", "--max-new-tokens", "4"]
    assert main(["evaluate", *common, "--methods", "lookup", "--json"]) == 0
    assert Evaluation.model_validate_json(capsys.readouterr().out).routing_accuracy is None


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("fly", "unknown command 'fly'"),
        ("evaluate --model m", "--prompts: Field required"),
        ("evaluate --model {missing} --prompts {prompts} --methods plain", "no model folder"),
        ("evaluate --model {model} --prompts {missing} --methods plain", "does not exist"),
        ("evaluate --model {model} --prompts {prompts} --methods magic", "unknown method 'magic'"),
        ("evaluate --model {model} --prompts {prompts} --methods knn", "--artifact: knn needs a routing artifact"),
        ("evaluate --model {model} --prompts {prompts} --methods low-bit", "--draft-weights: low-bit needs a copy"),
        (
            "evaluate --model {model} --prompts {prompts} --methods lookup --draft-weights int4",
            "draft weights in int4 need the CPU kernels",
        ),
        ("evaluate --model m --prompts p --draft-weights int2", "--draft-weights: Input should be 'none'"),
        ("evaluate --model m --prompts p --quantization 4", "--quantization: Input should be 'auto'"),
        ("collect --model m --prompts p --out o --activations half", "--activations: Input should be 'auto'"),
        ("evaluate --model {model} --prompts {prompts} --artifact {missing}", "no routing artifact in"),
        (
            "evaluate --model {model} --prompts {prompts} --artifact {artifact} --methods knn@cooking",
            "--methods: the artifact has no domain 'cooking', only stories, sql, another",
        ),
        ("evaluate --model {model} --prompts {prompts} --artifact {artifact} --methods knn@", "no domain ''"),
        ("evaluate --model {model} --prompts {prompts} --methods knn@sql", "--artifact: knn@sql needs a routing"),
        ("evaluate --model {model} --prompts {prompts} --methods magic@sql", "unknown method 'magic@sql'"),
        (
            "evaluate --model {model} --prompts {prompts} --methods plain --max-new-tokens 250",
            "no prompt is within 6 tokens",
        ),
        ("calibrate --model {model} --prompts {prompts}", "--out: Field required"),
        ("calibrate --model m --prompts p --out o --budget -1", "--budget: Input should be"),
        ("calibrate --model m --prompts p --out o --budge 1", "unrecognized arguments"),
        ("calibrate --model m --prompts p --out o --device warp", "not a torch device"),
        ("calibrate --model {model} --prompts {prompts} --out {prompts}", "Not a directory"),
        (
            "evaluate --model m --prompts p --temperatures 0,3",
            "--temperatures: Input should be less than or equal to 2",
        ),
        ("evaluate --model m --prompts p --plot chart.doc", "--plot: must end in .png"),
        ("evaluate --model m --prompts p --learn --repeats 2", "--learn goes with one repeat"),
        (
            "evaluate --model {model} -p {prompts} --methods plain --batch-size 9 --mix-ratio 1 --limit 1 --learn",
            "--learn: needs two batches",
        ),
        ("collect --model {model} --prompts {wizard} --out {missing}", "unknown role"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    command: str,
    reason: str,
    tiny_checkpoint: Path,
    tiny_artifact_folder: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wizard = tmp_path / "wizard.jsonl"
    wizard.write_text('{"messages": [{"role": "wizard", "content": "hello"}]}')
    names = {
        "model": tiny_checkpoint,
        "artifact": tiny_artifact_folder,
        "prompts": prompts,
        "missing": tmp_path / "none.jsonl",
        "wizard": wizard,
    }
    assert main([part.format(**names) for part in command.split()]) == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert output.err.startswith("knn-ssd-offline: ")
    assert output.err.count("\n") == 1
    assert not output.out


def test_an_artifact_of_another_model_is_refused(
    tiny_checkpoint: Path,
    tiny_artifact: RoutingArtifact,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tiny_artifact.manifest.model_copy(update={"model_fingerprint": "other"})
    RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {}).save(tmp_path)
    common = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--artifact", str(tmp_path)]
    assert main(["evaluate", *common]) == 2
    assert "was made for the model 'tiny' with other weights" in capsys.readouterr().err


def test_settings_come_from_the_environment_too(
    prompts: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KNNSSD_MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("KNNSSD_PROMPTS", f"{prompts},{prompts}")
    monkeypatch.setenv("KNNSSD_JSON", "1")
    assert main(["evaluate", "--methods", "plain", "--limit", "1", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_threads_are_a_setting_of_every_command(
    prompts: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    common = ["evaluate", "--model", str(tiny_checkpoint), "--prompts", str(prompts), "--methods", "plain"]
    few = ["--limit", "1", "--max-new-tokens", "3"]
    monkeypatch.setenv("KNNSSD_THREADS", "2")
    before = torch.get_num_threads()
    try:
        assert main([*common, *few]) == 0
        assert main([*common, *few, "--threads", "3"]) == 0
    finally:
        torch.set_num_threads(before)
    said = [message.split()[1] for message in messages.messages if message.startswith("threads: ")]
    assert said == ["2", "3"]


@pytest.mark.parametrize("number", ["0", "-1", "1025", "two"])
def test_a_wrong_number_of_threads_is_refused(
    number: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("evaluate", "calibrate", "study"):
        options = [] if command == "evaluate" else ["--out", str(tmp_path)]
        assert main([command, "--prompts", str(prompts), *options, "--threads", number]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("knn-ssd-offline: --threads: Input should be")


def test_help_lists_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "calibrate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0
    assert "--mix-ratio" in capsys.readouterr().out


def test_the_stream_changes_domain_as_often_as_asked() -> None:
    jobs = [Job([1], "ab"[i % 2], i) for i in range(200)]
    together, mixed = stream(jobs, 0.0, 0), stream(jobs, 1.0, 0)
    assert [job.domain for job in together] == ["a"] * 100 + ["b"] * 100
    assert [job.domain for job in mixed] == ["a", "b"] * 100 or [job.domain for job in mixed] == ["b", "a"] * 100
    assert stream(jobs, 0.3, 1) == stream(jobs, 0.3, 1)
    assert sorted(job.seed for job in stream(jobs, 0.3, 1)) == list(range(200))


def test_the_json_object_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        Evaluation.model_validate({"format": "knnssd-evaluate/1", "extra": 1})

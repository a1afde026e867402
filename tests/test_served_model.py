"""Loading with an artifact: which copy drafts get, what the log says of a missing one, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.engine import (
    ArtifactError,
    Checkpoint,
    CheckpointError,
    DraftWeights,
    EngineConfig,
    GenerationRequest,
    HistoryError,
    MemoryPlanError,
    Outline,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
    TextCodec,
    kernel_build,
    load_checkpoint,
)
from server.engine.history.history import History
from server.engine.model import draft_weights, kernels
from server.served_model import ServedModel, Source, load
from server.settings import read_settings
from tests.tiny import CPU, save_random_model, tiny_config

Load = Callable[..., ServedModel]

pytestmark = pytest.mark.skipif(kernel_build() == "none", reason="no kernels for this processor")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A model that the kernels run."""
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16))
    return folder, load_checkpoint(str(folder), torch.bfloat16, CPU)


def saved_artifact(
    tiny_artifact: RoutingArtifact, checkpoint: Checkpoint, folder: Path, weights: str, ids: list[int] | None = None
) -> Path:
    """An artifact of this model; with weights the drafts of sql are low-bit, with ids they have a vocabulary."""
    manifest = tiny_artifact.manifest
    stories, sql = manifest.domains
    changes = {"is_low_bit": weights != "none", "vocabulary_size": len(ids) if ids else None}
    domains = [stories, sql.model_copy(update={"draft": sql.draft.model_copy(update=changes)})]
    own = {
        "model_fingerprint": checkpoint.fingerprint,
        "chat_template_hash": TextCodec(checkpoint.tokenizer).template_hash,
    }
    manifest = manifest.model_copy(update={**own, "domains": domains, "draft_weights": weights})
    vocabularies = {"sql": torch.tensor(ids)} if ids else {}
    RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, vocabularies).save(folder)
    return folder


@pytest.fixture
def loaded(small: tuple[Path, Checkpoint], tiny_artifact: RoutingArtifact, tmp_path: Path) -> Load:
    """Loads the small model with an artifact that was calibrated with a copy."""
    folder, checkpoint = small

    def run(weights: str, asked: DraftWeights, method: str = "cascade", ids: list[int] | None = None) -> ServedModel:
        artifact = saved_artifact(tiny_artifact, checkpoint, tmp_path, weights, ids)
        flags = ["--model", str(folder), "--artifact", str(artifact), "--method", method, "--draft-weights", asked]
        settings = read_settings([*flags, "--max-batch", "1", "--max-length", "64", "--threads", "1"])
        return load(settings.source, settings.engine_config)

    return run


@pytest.fixture
def never_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy whose passes take too long for `auto`."""
    monkeypatch.setattr(draft_weights, "predicted_gain", lambda *_: 0.5)


def copy_of(served: ServedModel) -> str | None:
    low_bit = served.engine.model.low_bit
    return low_bit.precision.split()[0] if low_bit else None


@pytest.mark.parametrize(
    ("weights", "asked", "method", "expected"),
    [
        ("int8", "auto", "cascade", "int8"),
        ("int4", "auto", "lookup", "int4"),
        ("int8", "auto", "low-bit", "int8"),
        ("int8", "int4", "cascade", "int4"),
        ("int8", "none", "cascade", None),
        ("none", "auto", "low-bit", "int4"),
        ("none", "auto", "cascade", None),
        ("none", "int8", "cascade", "int8"),
    ],
)
@pytest.mark.usefixtures("never_pays")
def test_auto_takes_the_copy_that_the_artifact_was_calibrated_with(
    loaded: Load, weights: str, asked: DraftWeights, method: str, expected: str | None
) -> None:
    assert copy_of(loaded(weights, asked, method)) == expected


@pytest.mark.usefixtures("never_pays")
def test_without_an_artifact_auto_makes_a_copy_for_a_method_that_needs_one(small: tuple[Path, Checkpoint]) -> None:
    for method, expected in (("low-bit", "int4"), ("cascade", None)):
        source = Source(str(small[0]), "small", None, None, CPU, draft_weights="auto", threads=1)
        assert copy_of(load(source, EngineConfig(1, 64, method=method))) == expected


@pytest.mark.skipif(not History.is_built(), reason="no compiler has built the table")
def test_what_was_learned_outlives_the_server(small: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    """In a file that is written when it stops; one that is broken is an error at the start."""
    path = tmp_path / "counts"
    source = Source(str(small[0]), "small", None, None, CPU, threads=1, history_file=path)
    request = GenerationRequest([1, 7, 8, 9], SamplingParams(), StopConditions(30), "suffix")
    steps = []
    for _ in range(2):
        served = load(source, EngineConfig(1, 64, is_adaptive=False, baseline_share=0))
        steps.append(served.engine.generate([request])[0].stats.num_steps)
        served.close()
    assert steps[1] < steps[0]
    path.write_bytes(b"nonsense")
    with pytest.raises(HistoryError, match="cannot be read"):
        load(source, EngineConfig(1, 64))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_missing_copy_is_announced_once_with_the_flag_that_makes_it(
    loaded: Load, caplog: pytest.LogCaptureFixture
) -> None:
    served = loaded("int8", "none")
    assert served.drafts["sql"].is_low_bit
    assert warnings(caplog) == [
        "no draft weights: nothing is drafted as the artifact says for sql; it was calibrated with --draft-weights int8"
    ]


@pytest.mark.parametrize(("weights", "asked"), [("int8", "auto"), ("int8", "int4"), ("none", "none")])
def test_nothing_is_announced_where_nothing_is_missing(
    loaded: Load, weights: str, asked: DraftWeights, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(weights, asked)
    assert not warnings(caplog)


def test_where_no_kernels_run_the_model_it_is_served_without_the_copy(
    loaded: Load, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    assert copy_of(loaded("int8", "auto")) is None
    assert "it was calibrated with --draft-weights int8" in warnings(caplog)[0]
    with pytest.raises(CheckpointError, match="draft weights in int8 need the CPU kernels"):
        loaded("int8", "int8")


@pytest.mark.usefixtures("never_pays")
def test_a_copy_that_nobody_asked_for_is_left_out_where_it_does_not_fit(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Outline.copy_bytes
    monkeypatch.setattr(Outline, "copy_bytes", lambda outline, choice: 10**15 * real(outline, choice))
    assert copy_of(loaded("int8", "auto")) is None
    assert warnings(caplog)[0] == "no draft weights: the memory has no room for them"
    for asked, method in (("int8", "cascade"), ("auto", "low-bit")):
        with pytest.raises(MemoryPlanError, match="use --draft-weights none"):
            loaded("int8", asked, method)


def test_vocabularies_reach_the_routes(loaded: Load) -> None:
    vocabulary = loaded("none", "none", ids=[7, 3, 261]).drafts["sql"].vocabulary
    assert vocabulary is not None and vocabulary.token_ids == (7, 3, 261)


def test_a_vocabulary_beyond_the_models_is_refused(loaded: Load) -> None:
    with pytest.raises(ArtifactError, match=r"has token 262 in 'vocabulary.sql', and the model has 0 to 261; run `knn"):
        loaded("none", "none", ids=[7, 262])

"""What answers of the past tell: to their owner and domain alone, and nothing of it changes a text."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine import (
    Decoder,
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    Sequence,
    StopConditions,
    answer_counts,
)
from server.engine.history.counts import library
from server.engine.history.history import History
from server.engine.masks.tensors import ArtifactError
from server.engine.speculation.drafters import SuffixDrafter
from server.engine.types import FULL_MODEL

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")

PROMPT = [7, 8, 9, 10, 11]


def request(owner: str | None = None, domain: str = "none", temperature: float = 0.0) -> GenerationRequest:
    sampling = SamplingParams(temperature, seed=5)
    route = Route(domain, FULL_MODEL)
    return GenerationRequest(PROMPT, sampling, StopConditions(40), "suffix", route, owner=owner)


def engine(model: Decoder, history_bytes: int = 1 << 20) -> Engine:
    return Engine(model, EngineConfig(1, 128, history_bytes=history_bytes, is_adaptive=False, baseline_share=0))


def steps(one: Engine, asked: GenerationRequest) -> int:
    return one.generate([asked])[0].stats.num_steps


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_that_comes_again_is_drafted_from_the_first(model: Decoder, temperature: float) -> None:
    one, asked = engine(model), request(temperature=temperature)
    first, second = (one.generate([asked])[0] for _ in range(2))
    assert second.output_ids == first.output_ids
    assert second.stats.num_steps < first.stats.num_steps / 2
    plain = one.generate([GenerationRequest(PROMPT, asked.sampling, asked.stop, "plain")])[0]
    assert plain.output_ids == first.output_ids


@pytest.mark.parametrize(
    ("first", "second", "is_known"),
    [
        (request("ann"), request("ann"), True),
        (request("ann"), request("bob"), False),
        (request("ann"), request(None), False),
        (request(None), request("ann"), True),
        (request("ann", "a"), request("ann", "b"), False),
        (request("a", "b c"), request("a b", "c"), False),
    ],
)
def test_answers_draft_for_their_owner_and_domain_only(
    model: Decoder, first: GenerationRequest, second: GenerationRequest, is_known: bool
) -> None:
    """What nobody owns is everyone's: that is what an artifact brings."""
    one = engine(model)
    one.generate([first])
    assert (steps(one, second) < steps(engine(model), second)) == is_known


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("part", [slice(0, 40), slice(10, 40), slice(0, 20)])
def test_an_expected_answer_is_drafted_from(model: Decoder, temperature: float, part: slice) -> None:
    """Whole, or its end, or its beginning; what is expected wrongly changes no text either."""
    asked = request(temperature=temperature)
    first = engine(model).generate([asked])[0]
    right = tuple(first.output_ids[part])
    sequence = engine(model).generate([replace(asked, prediction=right)])[0]
    assert sequence.output_ids == first.output_ids
    assert sequence.stats.num_accepted >= len(right) / 2
    wrong = engine(model).generate([replace(asked, prediction=tuple(reversed(right)))])[0]
    assert wrong.output_ids == first.output_ids


def test_an_expected_answer_has_tokens_of_the_model(model: Decoder) -> None:
    with pytest.raises(ValueError, match="predicted token ids are between 0 and 261"):
        engine(model).add(replace(request(), prediction=(262,)))


def test_without_memory_nothing_is_learned(model: Decoder) -> None:
    one = engine(model, history_bytes=0)
    assert steps(one, request()) == steps(one, request())


def test_an_artifacts_answers_draft_for_their_domain(model: Decoder, tmp_path: Path) -> None:
    answer = engine(model).generate([request()])[0].output_ids
    history = History(0, {"a": answer_counts("a", [(PROMPT, answer)] * 3, least_visits=3)})

    def drafted(domain: str) -> list[int]:
        sequence = Sequence.of(0, request(), "suffix", 8, 128)
        text = history.text(domain, "ann", sequence.max_ids)
        return text.continuation(PROMPT, 4, 0.1).ids

    assert drafted("a") == answer[:4]
    assert drafted("b") == []


def test_an_answer_counts_its_own_tokens_and_not_its_prompts(model: Decoder) -> None:
    entries = answer_counts("a", [([1, 2, 3], [])] * 9 + [([1, 2, 3], [4])] * 9, least_visits=9)
    assert set(entries.view(-1).tolist()) and len(entries) == 3


def test_histories_travel_with_an_artifact(tiny_artifact: RoutingArtifact, tmp_path: Path) -> None:
    entries = {name: answer_counts(name, [(PROMPT, [1, 2, 3])], 1) for name in ("stories", "mixed")}

    def sized(artifact: RoutingArtifact) -> RoutingArtifact:
        manifest = artifact.manifest
        records = [
            record.model_copy(update={"history_size": len(entries[record.name]) if record.name in entries else None})
            for record in manifest.records
        ]
        changed = manifest.model_copy(update={"domains": records[:-1], "mixed": records[-1]})
        return RoutingArtifact(changed, artifact.anchors, artifact.centre, {}, {}, entries)

    sized(tiny_artifact).save(tmp_path)
    loaded = RoutingArtifact.load(tmp_path)
    assert {name: len(each) for name, each in loaded.history.items()} == {"stories": 14, "other": 14}
    manifest = loaded.manifest
    loaded.check_model(manifest.model_fingerprint, manifest.chat_template_hash, tmp_path, 262)
    with pytest.raises(ArtifactError, match=r"has token 3 in 'history\.\w+', and the model has 0 to 2"):
        loaded.check_model(manifest.model_fingerprint, manifest.chat_template_hash, tmp_path, 3)
    (tmp_path / "manifest.json").write_text(loaded.manifest_text.replace('"history_size": 14', '"history_size": 13'))
    with pytest.raises(ArtifactError, match=r"holds no tensor 'history\.stories' of 13 entries of 24 bytes"):
        RoutingArtifact.load(tmp_path)


def test_a_build_without_a_compiler_has_no_such_drafts(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.history.history.library", lambda: None)
    one = engine(model)
    assert one.lacks("suffix") == "the compiled table of counts"
    assert one.lacks("cascade") is None
    assert len(one.generate([request()])[0].output_ids) == 40


def test_a_cancelled_answer_leaves_no_text_behind(model: Decoder) -> None:
    one = engine(model)
    sequence = one.add(request())
    for _ in range(5):
        one.step()
    drafter = one.speculator.drafters["suffix"]
    assert isinstance(drafter, SuffixDrafter) and sequence.id in drafter.running
    one.cancel(sequence)
    assert sequence.finish_reason is FinishReason.CANCELLED
    assert not drafter.running

"""Steps of requests that ask where their tokens came from: every method, in a batch with others that do not ask."""

from dataclasses import replace
from typing import Any

import pytest

from server.engine import (
    PLAIN,
    Decoder,
    DraftModel,
    Emission,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    TracedStep,
    methods,
)
from tests.batches import MASK, Models, new_engine, prompt, random_patch, request, run

SAMPLED = SamplingParams(0.9, seed=7)


def asked(method: str, num_tokens: int = 40, **changes: Any) -> GenerationRequest:
    text = prompt(12, 1)
    one = replace(request([*text, *text[1:]], num_tokens), method=method, is_traced=True, route=None)
    return replace(one, **changes)


def traced_steps(emissions: list[Emission], number: int = 0) -> list[tuple[TracedStep, list[int]]]:
    own = [each for each in emissions if each.sequence.id == number]
    assert all(each.step for each in own)
    return [(each.step or TracedStep(), each.token_ids) for each in own]


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", methods())
def test_steps_agree_with_what_is_counted(
    model: Decoder, tiny_artifact: RoutingArtifact, method: str, sampling: SamplingParams
) -> None:
    engine = Engine(model, EngineConfig(4, baseline_share=1 / 7, is_adaptive=False), tiny_artifact)
    if engine.lacks(method):
        pytest.skip(f"no {engine.lacks(method)}")
    sequence = engine.add(asked(method, sampling=sampling))
    engine.add(replace(asked(method), is_traced=False))
    emissions, _ = run(engine)
    steps = traced_steps(emissions)
    assert steps[0] == (TracedStep(), sequence.output_ids[:1])
    assert sum(step.num_accepted for step, _ in steps) == sequence.stats.num_accepted
    assert sum(len(step.rejected) for step, _ in steps) == sequence.stats.num_drafted - sequence.stats.num_accepted
    for step, ids in steps:
        assert len(ids) in (step.num_accepted, step.num_accepted + 1)
        assert not step.rejected or step.rejected[0] != ids[step.num_accepted]
        assert (step.origin == PLAIN) == (step.num_accepted + len(step.rejected) == 0)
    assert {step.origin for step, _ in steps} <= {PLAIN, *methods()[method].drafters}
    assert all(each.step is None for each in emissions if each.sequence.id == 1)


def test_tokens_of_a_patch_are_told_from_those_of_skipped_layers(models: Models) -> None:
    model = models("float32")
    patched, skipping = DraftModel(patch=random_patch(model, 1)), DraftModel(MASK)
    for draft, origin in ((patched, "patch"), (skipping, "skip")):
        engine = new_engine(model, baseline_share=0)
        engine.add(asked("skip", route=Route("test", draft)))
        assert {step.origin for step, _ in traced_steps(run(engine)[0])} <= {PLAIN, origin}
        engine.add(asked("lookup", route=Route("test", draft)))
        assert {step.origin for step, _ in traced_steps(run(engine)[0], 1)} <= {PLAIN, "lookup"}


def test_a_stop_token_inside_a_draft_ends_the_trace(model: Decoder) -> None:
    (plain,) = new_engine(model).generate([asked(PLAIN)])
    for end in dict.fromkeys(plain.output_ids):
        engine = new_engine(model, baseline_share=0)
        sequence = engine.add(replace(request(asked(PLAIN).prompt_ids, 40, frozenset({end})), is_traced=True))
        steps = traced_steps(run(engine)[0])
        assert [token for _, ids in steps for token in ids] == sequence.output_ids
        assert steps[-1][1][-1] == end
        assert sum(step.num_accepted for step, _ in steps) == sequence.stats.num_accepted


def test_a_prompts_place_is_found_only_for_those_who_ask(model: Decoder, tiny_artifact: RoutingArtifact) -> None:
    engine = Engine(model, EngineConfig(4), tiny_artifact)
    router = engine.router
    assert router
    first, second, third = engine.generate(
        [asked("skip", 4), replace(asked("skip", 4), is_traced=False), asked("skip", 4, route=router.named("sql"))]
    )
    assert first.prompt_vector is not None
    assert first.place == router.place(first.prompt_vector)
    assert first.place.nearest[0][0] == first.route.domain
    assert third.place and third.place.nearest == first.place.nearest
    assert second.place is None
    (without,) = new_engine(model).generate([asked("lookup", 4)])
    assert without.place is None

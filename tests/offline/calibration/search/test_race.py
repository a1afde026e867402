"""Heats: few texts for every draft, all texts for those that keep up, and no pass made twice."""

import pytest

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.scoring.score import PLAIN_SCORE, DraftScorer, best_score
from offline.calibration.search.race import ALL_HEATS, FIRST_HEAT, MARGIN, DomainTraces, Race
from server.engine import Decoder, SkipMask
from tests.offline.calibration.examples import COST, vocabularies
from tests.offline.calibration.search.test_search import texts_of

SOME = DraftChoice(mask=SkipMask(frozenset({1})))
OTHER = DraftChoice(mask=SkipMask(frozenset({1, 2}), frozenset({2})))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, DraftChoice]]:
    """The number of texts and the draft of every scoring pass."""
    made: list[tuple[int, DraftChoice]] = []
    traces = DraftScorer.traces

    def counted(self: DraftScorer, choice: DraftChoice) -> list[object]:
        made.append((len(self.texts), choice))
        return list(traces(self, choice))

    monkeypatch.setattr(DraftScorer, "traces", counted)
    return made


def by_prompt(texts: list[Text]) -> list[list[int]]:
    return sorted(text.prompt_ids for text in texts)


@pytest.mark.parametrize(("count", "first"), [(1, 1), (7, 7), (8, 4), (16, 4)])
def test_the_parts_hold_every_text_once(model: Decoder, count: int, first: int) -> None:
    texts = [Text(prompt_ids=[i], output_ids=[1, 2]) for i in range(count)]
    parts = DomainTraces(model, vocabularies(), texts).heats
    assert by_prompt([text for part in parts.values() for text in part]) == by_prompt(texts)
    assert sum(len(part) for (_, heat), part in parts.items() if heat == 0) == first
    assert by_prompt([*parts[0, 0], *parts[0, 1]]) == by_prompt(texts[::2])


def test_a_draft_that_falls_behind_gets_no_second_heat(model: Decoder, passes: list[tuple[int, DraftChoice]]) -> None:
    domain = DomainTraces(model, vocabularies(), texts_of(model, 8))
    race = Race([domain], COST)
    slow = race.score(OTHER, FIRST_HEAT).speedup
    assert slow < 1 - MARGIN, "the tiny model's drafts are no match for plain decoding"
    passes.clear()
    found = race(OTHER, DraftChoice())
    assert found.speedup == pytest.approx(slow)
    assert not any(choice == OTHER for _, choice in passes), "its first heat is known"
    assert race(OTHER, None) == race.score(OTHER, ALL_HEATS)
    assert race(OTHER, OTHER) == race.score(OTHER, ALL_HEATS), "nobody falls behind himself"


def test_all_heats_are_the_score_of_all_texts(model: Decoder) -> None:
    texts = texts_of(model, 9)
    whole = Race([DomainTraces(model, vocabularies(), texts)], COST).score(SOME, ALL_HEATS)
    together = best_score(DraftScorer(model, vocabularies(), texts).traces(SOME), SOME, COST)
    assert whole.speedup == pytest.approx(together.speedup, rel=1e-6)
    assert whole.acceptance == pytest.approx(together.acceptance, rel=1e-6)


def test_no_pass_is_made_twice_and_halves_share_it(model: Decoder, passes: list[tuple[int, DraftChoice]]) -> None:
    domain = DomainTraces(model, vocabularies(), texts_of(model, 8))
    Race([domain], COST).score(SOME, ALL_HEATS)
    assert sorted(count for count, _ in passes) == [2, 2, 2, 2]
    for half in (0, 1):
        Race([domain], COST, (half,)).score(SOME, ALL_HEATS)
    domain.release()
    Race([domain, domain], COST).score(SOME, ALL_HEATS)
    assert len(passes) == 4
    assert not domain.scorers


def test_the_model_itself_needs_no_pass(model: Decoder, passes: list[tuple[int, DraftChoice]]) -> None:
    race = Race([DomainTraces(model, vocabularies(), texts_of(model, 8))], COST)
    assert race(DraftChoice(), None) == race(DraftChoice(), DraftChoice()) == PLAIN_SCORE
    assert not passes

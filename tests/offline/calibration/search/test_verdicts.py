"""Verdicts: a domain keeps its own draft only beyond the noise, and domains share drafts that do for both."""

from pathlib import Path

import numpy as np
import pytest

from offline.calibration.scoring import drafts
from offline.calibration.scoring.continuations import Text, Texts
from offline.calibration.scoring.drafts import DraftChoice, DraftRule, VocabularyChoice
from offline.calibration.scoring.replay import Outcome, Trace, best_rule
from offline.calibration.scoring.score import Score
from offline.calibration.search.race import ALL_HEATS, HALVES, DomainTraces
from offline.calibration.search.search import FIRST_HALF, OTHER_SEED, SECOND_HALF, DomainDrafts, DraftRun, search_domain
from offline.calibration.search.verdicts import Judge, Verdict, share
from offline.evaluation.summary import Interval
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.settings import CalibrationSettings
from server.engine import SkipMask
from tests.offline.calibration.examples import COST, vocabularies

RULE = DraftRule(max_draft=2, confidence=0.0)
MASK = DraftChoice(mask=SkipMask(frozenset({1, 2}), frozenset({2})))
SCORE = Score(speedup=1.2, acceptance=0.7)


def verdict(gain: float, low: float, seed_noise: float | None, prompt_noise: float | None) -> Verdict:
    interval = Interval(median=gain, low=low, high=gain + 0.1)
    return Verdict(
        name="a",
        draft_of="a",
        choice=MASK,
        rule=RULE,
        score=SCORE,
        speedup=interval,
        acceptance=interval,
        own=SCORE,
        mixed=SCORE,
        gain=interval,
        seed_noise=seed_noise,
        prompt_noise=prompt_noise,
        parts={},
    )


@pytest.mark.parametrize(
    ("gain", "low", "seed_noise", "prompt_noise", "pays"),
    [
        (0.1, 0.02, 0.01, 0.05, True),
        (0.1, 0.02, 0.01, 0.15, False),
        (0.1, 0.02, 0.15, 0.01, False),
        (0.1, -0.01, 0.01, 0.01, False),
        (-0.1, -0.2, 0.0, 0.0, False),
        (0.1, 0.02, None, None, True),
    ],
)
def test_an_own_draft_pays_beyond_noise_and_scatter(
    gain: float, low: float, seed_noise: float | None, prompt_noise: float | None, pays: bool
) -> None:
    assert verdict(gain, low, seed_noise, prompt_noise).pays == pays


def test_an_outcome_is_the_replayed_drafts_over_plain_decoding() -> None:
    good, bad = Trace([True] * 9, [1.0] * 9), Trace([False] * 9, [1.0] * 9)
    found = Outcome.of([good, bad], MASK, RULE, COST)
    draft = COST.draft(MASK) / COST.plain
    assert found.tokens.tolist() == [9, 9]
    assert found.seconds[0] == pytest.approx(3 * (2 * draft + 1))
    assert found.seconds[1] > 9
    assert found.acceptances(seed=0)[0] == pytest.approx(found.accepted.sum() / found.drafted.sum())
    assert (found.accepted[1], found.acceptances(seed=0)[1:].min()) == (0, 0)
    speedups = found.speedups(seed=0)
    assert speedups[0] == pytest.approx(18 / found.seconds.sum())
    assert speedups[1:].min() == pytest.approx(9 / found.seconds[1])
    assert np.array_equal(speedups, found.speedups(seed=0))
    assert Outcome.of([good, bad], DraftChoice(), RULE, COST).speedups(0).tolist() == [1.0] * 1001
    assert Outcome.of([], MASK, RULE, COST).speedups(0).tolist() == [1.0] * 1001
    assert Outcome.of([], MASK, RULE, COST).acceptances(0).tolist() == [0.0] * 1001


def test_domains_share_a_draft_that_does_for_both() -> None:
    table = {("a", "a"): 1.5, ("b", "b"): 1.4, ("c", "c"): 1.3}
    table |= {("b", "a"): 1.39, ("a", "b"): 1.49, ("c", "a"): 1.0, ("a", "c"): 1.5, ("c", "b"): 1.29, ("b", "c"): 1.39}
    noise = dict.fromkeys("abcd", 0.02)
    owners = {"a": "a", "b": "b", "c": "c", "d": MIXED}

    def speedup(name: str, by: str) -> float:
        return table[name, by]

    assert share(owners, noise, speedup) == {"a": "a", "b": "a", "c": "c", "d": MIXED}
    assert share(owners, dict.fromkeys("abcd", 0.0), speedup) == owners


def texts_of(shift: int) -> list[Text]:
    return [Text(prompt_ids=[5 + shift, 6 + i], output_ids=[(7 * i + j) % 90 for j in range(20)]) for i in range(4)]


def test_the_searches_of_a_domain_and_what_is_made_of_them(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "SIZES", (16, 64))
    settings = CalibrationSettings(
        model=str(tiny_checkpoint), prompts=[Path("p")], out=tmp_path, budget=5, dtype="float32"
    )
    loaded, known = LoadedModel.open(settings), vocabularies()
    texts = {name: Texts(digest=name, search=texts_of(i), heldout=texts_of(i + 9)) for i, name in enumerate("ab")}

    def traces() -> dict[str, DomainTraces]:
        return {name: DomainTraces(loaded.model, known, each.search) for name, each in texts.items()}

    def search(name: str, folder: Path) -> DomainDrafts:
        domains = list(traces().values()) if name == MIXED else [traces()[name]]
        return search_domain(loaded, name, domains, name, COST, settings, folder / name)

    found = {name: search(name, tmp_path) for name in ("a", "b", MIXED)}
    assert set(found["a"].controls) == {OTHER_SEED, FIRST_HALF, SECOND_HALF}
    assert not found[MIXED].controls
    assert found["a"].own == search("a", tmp_path / "again").own
    verdicts = Judge(traces(), texts, found, COST, seed=0).verdicts("d")
    assert verdicts == Judge(traces(), texts, found, COST, seed=0).verdicts("d")
    assert np.array(verdicts.cross).shape == (3, 2)
    assert [each.name for each in verdicts.domains] == ["a", "b"]
    for column, each in enumerate(verdicts.domains):
        assert each.own.speedup == verdicts.cross[column][column]
        assert each.mixed.speedup == verdicts.cross[2][column]
        assert each.gain.median == pytest.approx(each.own.speedup - each.mixed.speedup)
        assert each.choice == found[each.draft_of].own.choice
        assert each.draft_of != each.name or each.pays
        assert set(each.parts) == {"mask", "patch", "vocabulary", "bits", "all"}
        assert each.parts["all"] == each.score.speedup
        assert each.parts["bits"] == 1.0, "there is no copy"
    assert verdicts.num_drafts == len({each.draft_of for each in verdicts.domains})


def test_each_draft_has_the_rule_that_suits_it_on_the_search_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = CalibrationSettings(model=str(tiny_checkpoint), prompts=[Path("p")], out=tmp_path, dtype="float32")
    loaded, known = LoadedModel.open(settings), vocabularies()
    texts = {name: Texts(digest=name, search=texts_of(i), heldout=texts_of(i + 9)) for i, name in enumerate("ab")}
    traces = {name: DomainTraces(loaded.model, known, each.search) for name, each in texts.items()}
    vocabulary = VocabularyChoice(of="a", size=100)
    choices = {"a": MASK, "b": DraftChoice(vocabulary=vocabulary), MIXED: MASK.with_vocabulary(vocabulary)}
    runs = {name: DraftRun(choice=choice, curve=[1.0]) for name, choice in choices.items()}
    found = {name: DomainDrafts(digest=name, name=name, own=run, controls={}) for name, run in runs.items()}
    judge = Judge(traces, texts, found, COST, seed=0)
    for name, domains in {"a": "a", "b": "b", MIXED: "ab"}.items():
        for choice in choices.values():
            searched = [trace for each in domains for trace in traces[each].traces(choice, HALVES, ALL_HEATS)]
            assert judge.rule(name, choice) == best_rule(searched, choice, COST)
    verdict = judge.verdict("b", MIXED)
    assert verdict.choice == choices[MIXED] and verdict.rule == judge.rule("b", choices[MIXED])
    assert verdict.parts["mask"] == judge.score("b", MASK).speedup
    assert verdict.parts["vocabulary"] == judge.score("b", choices["b"]).speedup
    assert verdict.seed_noise is None and verdict.noise == 0.0

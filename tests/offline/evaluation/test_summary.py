"""Figures from samples: ratios within a turn, intervals, means over domains, the table."""

from collections import Counter
from collections.abc import Sequence

import pytest

from offline.evaluation.measure import Answer, Job, Runner, Sample, measure
from offline.evaluation.summary import MEAN, bootstrap_medians, interval, summarise, table
from server.engine import PLAIN, SequenceStats


def sample(method: str, domain: str, seed: int, tokens: int, seconds: float, repeat: int = 0, **stats: int) -> Sample:
    found = SequenceStats(accepted_per_step=Counter(), **stats) if stats else None
    return Sample(method, repeat, Job([1], domain, seed), Answer(list(range(tokens)), stats=found), seconds)


def test_speedup_is_the_median_of_ratios_within_a_turn() -> None:
    samples = [
        sample(PLAIN, "a", 0, 10, 1.0),
        sample("knn", "a", 0, 10, 0.5, num_drafts=2, num_drafted=8, num_accepted=6),
        sample(PLAIN, "a", 1, 10, 4.0),
        sample("knn", "a", 1, 10, 1.0, num_drafts=2, num_drafted=2, num_accepted=2),
        sample(PLAIN, "b", 2, 10, 1.0),
        sample("knn", "b", 2, 5, 0.5),
    ]
    rows = {(row.method, row.domain): row for row in summarise(samples, 0)}
    assert rows[PLAIN, MEAN].speedup.median == 1.0
    assert rows["knn", "a"].speedup.median == 3.0
    assert rows["knn", "a"].acceptance == 0.8
    assert rows["knn", "a"].mean_accepted_length == 3.0
    assert rows["knn", "a"].exact == 1.0
    assert rows["knn", "b"].exact == 0.0
    assert rows["knn", "b"].acceptance is None
    assert rows["knn", MEAN].speedup.median == 2.0
    assert rows["knn", MEAN].acceptance == 0.8
    assert rows["knn", MEAN].exact == 0.5
    assert rows["knn", MEAN].prompts == 3
    assert rows["knn", "a"].tokens_per_second == pytest.approx(20 / 1.5)


def test_decoding_is_compared_for_each_token_after_the_first() -> None:
    def timed(method: str, seed: int, tokens: int, seconds: float | None) -> Sample:
        return Sample(method, 0, Job([1], "a", seed), Answer(list(range(tokens)), seconds), 1.0)

    samples = [timed(PLAIN, 0, 11, 1.0), timed("knn", 0, 11, 0.5), timed("transformers", 0, 11, None)]
    samples += [timed(PLAIN, 1, 1, 0.0), timed("knn", 1, 1, 0.0)]
    rows = {row.method: row for row in summarise(samples, 0) if row.domain == MEAN}
    assert rows["knn"].decode_speedup is not None
    assert rows["knn"].decode_speedup.median == 2.0
    assert rows["transformers"].decode_speedup is None


def test_a_prompt_counts_once_however_often_it_is_repeated() -> None:
    samples = [sample(PLAIN, "a", 0, 10, 1.0, repeat) for repeat in range(3)]
    samples += [sample("knn", "a", 0, 10, seconds, repeat) for repeat, seconds in enumerate((0.5, 0.1, 1.0))]
    row = next(row for row in summarise(samples, 0) if row.method == "knn" and row.domain == "a")
    assert (row.prompts, row.tokens, row.speedup.median) == (1, 30, 2.0)


def test_methods_with_other_randomness_are_not_called_exact() -> None:
    samples = [sample(PLAIN, "a", 0, 3, 1.0), sample("transformers", "a", 0, 3, 1.0)]
    rows = summarise(samples, 0, frozenset({"transformers"}))
    assert [row.exact for row in rows if row.method == "transformers"] == [None, None]


def test_the_interval_holds_the_median_and_is_seeded() -> None:
    values = [1.0, 1.2, 1.1, 1.6, 1.3, 0.9, 1.4]
    found = interval(bootstrap_medians(values, 0))
    assert found.low <= found.median == 1.2 <= found.high
    assert found == interval(bootstrap_medians(values, 0))


def test_the_table_is_aligned() -> None:
    lines = table(summarise([sample(PLAIN, "a", 0, 10, 1.0)], 0)).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("plain   a ")


def test_methods_take_turns_in_shuffled_order_after_a_warm_up() -> None:
    calls: list[tuple[str, int]] = []

    def runner(name: str) -> Runner:
        def run(jobs: Sequence[Job]) -> list[Answer]:
            calls.append((name, jobs[0].seed))
            return [Answer([1, 2]) for _ in jobs]

        return run

    batches = [[Job([1], "a", 0), Job([1], "a", 1)], [Job([1], "a", 2)]]
    samples = measure({"x": runner("x"), "y": runner("y")}, batches, repeats=10)
    assert calls[:2] == [("x", 0), ("y", 0)]
    turns = [calls[i : i + 2] for i in range(2, len(calls), 2)]
    assert [{first for _, first in turn} for turn in turns] == [{0}, {2}] * 10
    assert all({name for name, _ in turn} == {"x", "y"} for turn in turns)
    assert len({turn[0][0] for turn in turns}) == 2
    assert len(samples) == 60

"""What of a load was answered as soon as a goal asks, and a sweep's figures as a table.

Goodput after DistServe (arXiv 2401.09670): answers count only where the first token came within one limit and the mean
time of each further token was within another. There it is the highest rate at which nine of ten meet both; here it is
how many a second met both at one number of clients, so the highest of a sweep is the nearest to it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from stream import Answer

FIRST, FURTHER = 2.0, 0.1
"""Seconds, where no goal is named; those of `knn-ssd-offline capacity`. Ten tokens a second are more than is read."""
COLUMNS = [
    "server",
    "clients",
    "answers",
    "tokens/s",
    "first p50",
    "first p95",
    "within",
    "answers/s",
    "tokens/s within",
]


@dataclass(frozen=True)
class Goal:
    """Seconds within which the first token comes, and, in the mean of one answer, each further one."""

    first: float = FIRST
    further: float = FURTHER

    def is_met(self, answer: Answer) -> bool:
        return answer.first <= self.first and answer.further <= self.further

    def __str__(self) -> str:
        return f"first token within {self.first:g} s, further ones in {1000 * self.further:g} ms each"


def goodput(answers: list[Answer], seconds: float, goal: Goal) -> dict[str, float]:
    """The goal, how many of the answers met it, and those and their tokens a second."""
    good = [answer for answer in answers if goal.is_met(answer)]
    rates = {"answers_per_second": len(good), "tokens_per_second": sum(answer.tokens for answer in good)}
    return {**asdict(goal), "answers": len(good), **{name: round(each / seconds, 3) for name, each in rates.items()}}


def table(lines: Iterable[dict[str, Any]]) -> str:
    """A sweep's lines with a row each, behind the goals; what lines of before goodput do not have is a dash."""
    lines = list(lines)
    known = [line["goodput"] for line in lines if "goodput" in line]
    goals = dict.fromkeys(str(Goal(each["first"], each["further"])) for each in known)
    rows = [COLUMNS, *map(row, lines)]
    widths = [max(len(each[i]) for each in rows) for i in range(len(COLUMNS))]
    aligned = ["  ".join([each[0].ljust(widths[0]), *map(str.rjust, each[1:], widths[1:])]) for each in rows]
    return "\n".join([*(f"within: {goal}" for goal in goals), *aligned])


def row(line: dict[str, Any]) -> list[str]:
    own = [line["server"], f"{line['clients']}", f"{line['answers']}", f"{line['tokens_per_second']:.1f}"]
    first, good = line["first_token"], line.get("goodput")
    own += [f"{first[name]:.2f}" if name in first else "-" for name in ("p50", "p95")]
    if good is None:
        return [*own, "-", "-", "-"]
    return [*own, f"{good['answers']}", f"{good['answers_per_second']:.2f}", f"{good['tokens_per_second']:.1f}"]

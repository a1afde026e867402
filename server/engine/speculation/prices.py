"""What drafts cost: the seconds that they and their checks add to a plain step, by the size of the batch."""

from collections import Counter, defaultdict

from server.engine.speculation.averages import Steady, Typical
from server.engine.speculation.base import DRAFTERS, Draft
from server.engine.types import DraftKind, StepStats

INFINITE = float("inf")


class Prices:
    """What steps of batches of about one size take, in seconds."""

    def __init__(self) -> None:
        self.plain = Typical(9)
        self.row = Typical(33)
        """Of a drafted token's row in the check, as a share of a plain step, taken from all of the batch."""
        self.checks: dict[tuple[str, int], Typical] = defaultdict(lambda: Typical(9))
        """What a free draft adds, by drafter and about its length."""
        self.tries: dict[tuple[str, DraftKind], Steady] = defaultdict(lambda: Steady(32))
        """What a try of any other adds in the mean, by drafter and kind of draft model; it may come to nothing.

        One domain's drafts may be passes over all layers, and another's a matrix in place of them. Domains whose drafts
        are alike learn together, for in a batch of many domains each has few tries.
        """

    def of(self, drafter: str, kind: DraftKind, length: int) -> Typical | Steady:
        if DRAFTERS[drafter].is_free:
            return self.checks[drafter, size_class(length)]
        return self.tries[drafter, kind]

    def rate(self, drafter: str, kind: DraftKind, length: int, gain: float, num_rows: int) -> float:
        """Tokens a second of each sequence if all of the batch drafted so: what one drafts, all wait for.

        Infinite while the price is unknown, so that it is tried.
        """
        plain, extra = self.plain.value, self.of(drafter, kind, length).value
        return INFINITE if extra is None or plain is None else (1 + gain) / (plain + num_rows * max(extra, 0.0))

    def add(self, drafts: list[Draft], num_rows: int, stats: StepStats) -> None:
        """Books what a step took beyond a plain one on its drafts: the check by their length, drafting on who drafted.

        Those that came to nothing are there too. Where one of eight sequences skips layers, it pays alone for passes
        that more would share, so that price is not taken.
        """
        num_drafted = sum(draft.num_rows for draft in drafts)
        if num_drafted == 0:
            self.plain.add(stats.verify_seconds)
        if not drafts or self.plain.value is None:
            return
        per_token = (stats.verify_seconds - self.plain.value) / num_drafted if num_drafted else 0.0
        if num_drafted:
            self.row.add(max(per_token, 0.0) * num_rows / self.plain.value)
        num_of = Counter(draft.drafter for draft in drafts)
        for name, kind in dict.fromkeys((draft.drafter, draft.kind) for draft in drafts):
            lengths = [draft.num_rows for draft in drafts if (draft.drafter, draft.kind) == (name, kind)]
            price = self.of(name, kind, max(lengths))
            if DRAFTERS[name].is_free or price.value is None or 2 * num_of[name] >= num_rows:
                drafting = stats.drafting_seconds.get(name, 0.0) / num_of[name]
                price.add(drafting + per_token * sum(lengths) / len(lengths))


def size_class(number: int) -> int:
    """Batches (or drafts) of 1, 2, 3-4, 5-8, ... cost about the same."""
    return max(number - 1, 0).bit_length()

"""Continues as answers of the same domain did, or as the text itself does."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from server.engine.history.history import History
from server.engine.sequence import Kind, Sequence
from server.engine.speculation.averages import Trust
from server.engine.speculation.base import Drafter, DraftingParts, Feedback, Proposals, register
from server.engine.types import LONGEST_GROWTH, FinishReason

LONG_ANSWER = 1024
"""Tokens of an answer that there is room for; of a longer one rare contexts are forgotten."""
HIGHEST_FLOOR = 0.7
"""What is more likely than this is proposed in any case: or what was wrong would never hear that it is right."""
SEQUENCE_MEMORY, KIND_MEMORY = 32, 256
"""Drafts that it looks back on to learn how far its expectations came true."""


@dataclass
class Running:
    """How far expectations came true in a sequence and in its kind, and what is expected of this step's draft."""

    trust: Trust
    trust_in_kind: Trust
    expected: float = 0.0


@register
class SuffixDrafter(Drafter):
    """Follows the counts of what came next before; SuffixDecoding, arXiv 2411.04975, with a table for its trees.

    Counted are this prompt and answer, what the request says it expects, and the domain's answers of the past: other
    prompts would do harm (LOG.md, 29 November). It costs no pass. A draft ends before a token that is less likely to be
    right than its row in the check costs, so its length follows from the counts, from the machine, and from how often
    it was right.
    """

    name = "suffix"
    summary = "continues as answers of the same domain did, or as the text itself; costs no pass"
    published = "to 5.3"
    is_free = True

    def __init__(self, history: History) -> None:
        self.history = history
        self.running: dict[int, Running] = {}
        self.trust_in_kinds: dict[Kind, Trust] = defaultdict(lambda: Trust(KIND_MEMORY))

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        assert parts.history is not None
        return cls(parts.history)

    @classmethod
    def fits(cls, parts: DraftingParts) -> bool:
        return parts.history is not None

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        proposals: Proposals = {}
        for sequence in sequences:
            running = self.running.get(sequence.id) or self.begin(sequence)
            limit, trust = sequence.grown_draft_limit(LONGEST_GROWTH), running.trust.value
            floor = min(row_price / trust, HIGHEST_FLOOR)
            found, running.expected = self.history.texts[sequence.id].continuation(sequence.ids, limit, floor)
            if forced := sequence.forced(limit):
                found, running.expected = forced, len(forced) / trust
            if found:
                proposals[sequence.id] = found
        return proposals

    def begin(self, sequence: Sequence) -> Running:
        domain, owner, prediction = sequence.route.domain, sequence.request.owner, sequence.request.prediction
        longest = min(sequence.max_ids, sequence.prompt_length + LONG_ANSWER)
        text = self.history.text(domain, owner, longest + len(prediction))
        if prediction:
            text.predict(sequence.request.prompt_ids, prediction)
        self.history.texts[sequence.id] = text
        in_kind = self.trust_in_kinds[sequence.kind]
        self.running[sequence.id] = Running(Trust(SEQUENCE_MEMORY, in_kind.value), in_kind)
        return self.running[sequence.id]

    def promise(self, sequence: Sequence) -> float:
        running = self.running[sequence.id]
        return running.expected * running.trust.value

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        running, gain = self.running[sequence.id], feedback.gain
        running.trust.add(running.expected, gain)
        running.trust_in_kind.add(running.expected, gain)

    def forget(self, sequence: Sequence) -> None:
        self.history.texts.pop(sequence.id, None)
        if self.running.pop(sequence.id, None) and sequence.finish_reason is not FinishReason.ERROR:
            self.history.add(sequence.route.domain, sequence.request.owner, sequence.ids, sequence.prompt_length)

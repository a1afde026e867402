"""Drafts for a whole batch: free proposals for all, then each sequence by the drafter that the policy picks.

Methods may be mixed in a batch: one sequence copies, the next skips layers, a third is decoded plainly.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Self

from server.engine.sequence import Sequence
from server.engine.speculation.base import (
    DRAFTERS,
    NO_DRAFT,
    Draft,
    Drafter,
    DraftingParts,
    Feedback,
    Method,
    Proposals,
    methods,
)
from server.engine.speculation.policy import FIRST_ROW_PRICE, DraftPolicy, Option
from server.engine.speculation.verification import Verification, count_agreeing
from server.engine.types import PATCHED, PLAIN, StepStats, TracedStep


class Speculator:
    """The drafters of one engine; without a policy a sequence takes the first of its method that has something."""

    def __init__(self, drafters: Iterable[Drafter], policy: DraftPolicy | None = None, num_branches: int = 0) -> None:
        """So many continuations at most may be checked beside the draft of a sequence that decodes alone."""
        self.drafters = {drafter.name: drafter for drafter in drafters}
        self.policy = policy
        self.num_branches = num_branches
        self.methods: Mapping[str, Method] = methods()
        self.allowed = {name: [d for d in each.drafters if d in self.drafters] for name, each in self.methods.items()}
        """The drafters of each method that are here, the preferred one first."""
        self.free: dict[str, Proposals] = {}
        """This step's proposals of free drafters, whether or not they are checked."""
        self.others: dict[str, tuple[list[int], ...]] = {}
        """Continuations beside these, by drafter, where one sequence decodes alone."""

    @classmethod
    def of(cls, parts: DraftingParts, policy: DraftPolicy | None, num_branches: int) -> Self:
        return cls([kind.of(parts) for kind in DRAFTERS.values() if kind.fits(parts)], policy, num_branches)

    def draft(self, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        """Drafts by sequence id, empty where passes were spent in vain; who is absent is decoded plainly."""
        # 1) What costs nothing is proposed for all that allow it.
        row_price = self.policy.row_price(len(sequences)) if self.policy else FIRST_ROW_PRICE
        self.free, self.others = {}, {}
        for name, drafter in self.drafters.items():
            if drafter.is_free and (allowing := [s for s in sequences if name in self.allowed[s.method]]):
                self.free[name] = drafter.propose(allowing, row_price)
                if len(sequences) == 1 and self.num_branches and self.free[name]:
                    self.others[name] = drafter.branches(sequences[0], row_price, self.num_branches)
        # 2) Each sequence gets one drafter.
        picks = {s.id: self.pick(s, len(sequences)) for s in sequences}
        # 3) Passes are spent for those that were given a drafter which needs them.
        proposals = dict(self.free)
        for name in dict.fromkeys(picks.values()):
            if name in self.drafters and name not in self.free:
                started = time.perf_counter()
                picked = [s for s in sequences if picks[s.id] == name]
                proposals[name] = self.drafters[name].propose(picked, row_price)
                if len(sequences) == 1 and self.num_branches and proposals[name]:
                    self.others[name] = self.drafters[name].branches(sequences[0], row_price, self.num_branches)
                stats.drafting_seconds[name] = time.perf_counter() - started
        return {
            number: Draft(proposals[name].get(number, []), name, self.others.get(name, ()))
            for number, name in picks.items()
            if name != PLAIN
        }

    def reads_state(self, sequence: Sequence) -> bool:
        """Whether its next draft may begin at the state of its last token."""
        if sequence.route.draft.patch is None:
            return False
        return any(self.drafters[name].needs_draft_model for name in self.allowed[sequence.method])

    def pick(self, sequence: Sequence, num_rows: int) -> str:
        options = self.options(sequence)
        return self.policy.pick(sequence, options, num_rows) if self.policy else next(iter(options), PLAIN)

    def options(self, sequence: Sequence) -> dict[str, Option]:
        """The drafters that could draft now."""
        options = {}
        for name in self.allowed[sequence.method]:
            drafter = self.drafters[name]
            if drafter.is_free:
                if found := self.free[name].get(sequence.id):
                    num_rows = Draft(found, name, self.others.get(name, ())).num_rows
                    options[name] = Option(num_rows, drafter.promise(sequence))
            elif drafter.can_draft(sequence):
                options[name] = Option()
        return options

    def learn(
        self, sequences: list[Sequence], drafts: dict[int, Draft], checks: list[Verification], stats: StepStats
    ) -> None:
        """Tells drafters and policy what a step's proposals gained and cost; `checks` are those of `sequences`."""
        for sequence, check in zip(sequences, checks, strict=True):
            draft = drafts.get(sequence.id, NO_DRAFT)
            proposed = {name: self.free[name].pop(sequence.id, []) for name in self.free}
            for name, ids in (proposed | {draft.drafter: draft.ids}).items():
                if ids:
                    num_agreed = check.num_accepted if ids is draft.ids else count_agreeing(ids, check.emitted)
                    self.judge(name, sequence, Feedback(ids, check.emitted, num_agreed))
            if self.policy and sequence.id in drafts and not draft.ids:
                self.policy.observe_gain(draft.drafter, sequence, 0)
        # What a step that reads prompts takes says little of drafts.
        if self.policy and not stats.prefill_tokens:
            self.policy.observe_seconds(list(drafts.values()), len(sequences), stats)

    def judge(self, name: str, sequence: Sequence, feedback: Feedback) -> None:
        self.drafters[name].learn(sequence, feedback)
        if self.policy:
            self.policy.observe_gain(name, sequence, feedback.gain)

    def traced(self, sequence: Sequence, draft: Draft, check: Verification) -> TracedStep | None:
        """Where the tokens of a check came from; None unless the request asks."""
        if not sequence.request.is_traced:
            return None
        rejected = tuple(draft.ids[check.num_accepted : check.num_drafted])
        return TracedStep(self.origin(sequence, draft), check.num_accepted, rejected)

    def origin(self, sequence: Sequence, draft: Draft) -> str:
        if not draft.ids:
            return PLAIN
        is_patched = self.drafters[draft.drafter].needs_draft_model and sequence.route.draft.patch is not None
        return PATCHED if is_patched else draft.drafter

    def forget(self, sequence: Sequence) -> None:
        for drafter in self.drafters.values():
            drafter.forget(sequence)
        for proposals in self.free.values():
            proposals.pop(sequence.id, None)
        if self.policy:
            self.policy.forget(sequence)

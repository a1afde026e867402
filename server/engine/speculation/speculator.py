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
    Paths,
    Proposals,
    methods,
)
from server.engine.speculation.policy import FIRST_ROW_PRICE, DraftPolicy, Option
from server.engine.speculation.verification import Verification, count_agreeing
from server.engine.types import PATCHED, PLAIN, StepStats, TracedStep


class Speculator:
    """The drafters of one engine; without a policy a sequence takes the first of its method that has something."""

    def __init__(self, drafters: Iterable[Drafter], policy: DraftPolicy | None = None, max_tree: int = 0) -> None:
        """A draft and what is checked beside it have at most `max_tree` tokens; with 0 all drafts are chains."""
        self.drafters = {drafter.name: drafter for drafter in drafters}
        self.policy = policy
        self.max_tree = max_tree
        self.methods: Mapping[str, Method] = methods()
        self.allowed = {name: [d for d in each.drafters if d in self.drafters] for name, each in self.methods.items()}
        """The drafters of each method that are here, the preferred one first."""
        self.proposals: dict[str, Proposals] = {}
        """This step's, by drafter; those of free ones whether or not they are checked."""
        self.others: dict[str, dict[int, Paths]] = {}
        """Continuations beside this step's proposals, by drafter and sequence, whether or not they are checked."""
        self.trees: set[tuple[str, int]] = set()
        """Drafters and sequences of which they are."""

    @classmethod
    def of(cls, parts: DraftingParts, policy: DraftPolicy | None, max_tree: int) -> Self:
        return cls([kind.of(parts) for kind in DRAFTERS.values() if kind.fits(parts)], policy, max_tree)

    def draft(self, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        """Drafts by sequence id, empty where passes were spent in vain; who is absent is decoded plainly."""
        # 1) What costs nothing is proposed for all that allow it, where it is ever picked.
        row_price = self.policy.row_price(len(sequences)) if self.policy else FIRST_ROW_PRICE
        self.proposals, self.others, self.trees = {}, {}, set()
        free = [name for name, drafter in self.drafters.items() if drafter.is_free]
        asked = {name: [sequence for sequence in sequences if self.asks(name, sequence)] for name in free}
        for name, asking in asked.items():
            if asking:
                self.propose(self.drafters[name], asking, row_price)
        # 2) Each sequence gets one drafter.
        picks = {s.id: self.pick(s, len(sequences)) for s in sequences}
        self.note_picks(asked, picks)
        # 3) Passes are spent for those that were given a drafter which needs them.
        for name in dict.fromkeys(picks.values()):
            if name in self.drafters and not self.drafters[name].is_free:
                started = time.perf_counter()
                self.propose(self.drafters[name], [s for s in sequences if picks[s.id] == name], row_price)
                stats.drafting_seconds[name] = time.perf_counter() - started
        picked = [(sequence, picks[sequence.id]) for sequence in sequences if picks[sequence.id] != PLAIN]
        return {
            s.id: Draft(self.proposals[name].get(s.id, []), name, self.others_of(name, s.id), s.route.draft.kind)
            for s, name in picked
        }

    def asks(self, name: str, sequence: Sequence) -> bool:
        """Whether a free drafter proposes for a sequence: the first of its method does in each step."""
        allowed = self.allowed[sequence.method]
        if name not in allowed:
            return False
        return self.policy is None or name == allowed[0] or self.policy.asks(name, sequence)

    def note_picks(self, asked: Mapping[str, list[Sequence]], picks: Mapping[int, str]) -> None:
        """Tells the policy of each that was asked whether it was picked."""
        if self.policy is None:
            return
        for name, asking in asked.items():
            for sequence in asking:
                self.policy.observe_pick(name, sequence, picks[sequence.id] == name)

    def propose(self, drafter: Drafter, sequences: list[Sequence], row_price: float) -> None:
        """Notes what a drafter proposes, and what it would have checked beside that."""
        proposals = self.proposals[drafter.name] = drafter.propose(sequences, row_price)
        if self.max_tree:
            proposed = [sequence for sequence in sequences if sequence.id in proposals]
            others = {s.id: drafter.branches(s, row_price, self.max_tree) for s in proposed}
            self.others[drafter.name] = others
            self.trees |= {
                (drafter.name, s.id)
                for s in proposed
                if (ways := others[s.id])
                and self.pays(Draft(proposals[s.id], drafter.name, ways, s.route.draft.kind), len(sequences))
            }

    def pays(self, tree: Draft, num_rows: int) -> bool:
        return self.policy is None or self.policy.prefers_tree(tree, num_rows)

    def others_of(self, name: str, number: int) -> Paths:
        return self.others[name][number] if (name, number) in self.trees else ()

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
                if found := self.proposals.get(name, {}).get(sequence.id):
                    others = self.others_of(name, sequence.id)
                    num_rows = Draft(found, name, others).num_rows
                    options[name] = Option(num_rows, drafter.promise(sequence), bool(others))
            elif drafter.can_draft(sequence):
                options[name] = Option(is_tree=self.max_tree > 0)
        return options

    def learn(
        self, sequences: list[Sequence], drafts: dict[int, Draft], checks: list[Verification], stats: StepStats
    ) -> None:
        """Tells drafters and policy what a step's proposals gained and cost; `checks` are those of `sequences`."""
        for sequence, check in zip(sequences, checks, strict=True):
            draft = drafts.get(sequence.id, NO_DRAFT)
            for name, proposals in self.proposals.items():
                if ids := proposals.pop(sequence.id, None):
                    self.judge(name, sequence, ids, check.emitted)
            if self.policy and sequence.id in drafts:
                self.policy.observe_check(draft.drafter, sequence, check.num_accepted)
                if not draft.ids:
                    self.policy.observe_gain(draft.drafter, sequence, 0)
        # What a step that reads prompts takes says little of drafts.
        if self.policy and not stats.prefill_tokens:
            self.policy.observe_seconds(list(drafts.values()), len(sequences), stats)

    def judge(self, name: str, sequence: Sequence, proposed: list[int], emitted: list[int]) -> None:
        """Drafter and policy learn of a proposal, the policy also what those beside it would have brought or did."""
        others = self.others.get(name, {}).get(sequence.id, ())
        chain, *beside = (Feedback(ids, emitted, count_agreeing(ids, emitted)) for ids in (proposed, *others))
        self.drafters[name].learn(sequence, chain)
        if self.policy:
            self.policy.observe_gain(name, sequence, chain.gain)
        if self.policy and beside:
            self.policy.observe_bonus(name, max(max(each.gain for each in beside) - chain.gain, 0))

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
        for proposals in self.proposals.values():
            proposals.pop(sequence.id, None)
        if self.policy:
            self.policy.forget(sequence)

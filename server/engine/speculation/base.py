"""The seam for drafting: what a drafter is, and the registry of all of them.

A new way to draft is one file in `drafters/` with a class marked `@register`, and one import in
`drafters/__init__.py`. Its name is then a method of the server (`--method`), of a request
(`speculation.method`) and of `evaluate`, and a label of the metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol, Self, TypeVar

from server.engine.history.history import History
from server.engine.kvcache.cache import KVCache
from server.engine.masks.base import DEFAULT_MASKS, MASK_SOURCES
from server.engine.model.decoder import Decoder
from server.engine.sequence import Sequence
from server.engine.speculation.draft_heads import DraftHeads
from server.engine.types import FULL_MODEL, PLAIN, DraftKind

Proposals = dict[int, list[int]]
"""Proposed ids by sequence id; a sequence for which there is nothing to propose is absent."""
Paths = tuple[list[int], ...]
"""Other continuations than a proposal, each from its beginning; they may begin as that or another does."""


class Draft(NamedTuple):
    """The ids that are checked next for one sequence, and the name of the drafter they came from.

    `others` are continuations that are checked beside it, in case that it is wrong. What a draft costs depends on
    the `kind` of its route's draft model.
    """

    ids: list[int]
    drafter: str
    others: Paths = ()
    kind: DraftKind = FULL_MODEL.kind

    @property
    def num_rows(self) -> int:
        """Rows of a check that it adds; what continuations have in common is one."""
        if not self.others:
            return len(self.ids)
        return len({tuple(ids[:end]) for ids in (self.ids, *self.others) for end in range(1, len(ids) + 1)})


NO_DRAFT = Draft([], PLAIN)


@dataclass(frozen=True)
class Feedback:
    """What became of a proposal: the model's own tokens beside it, and how many of its first ones agree.

    Proposed 5 6 8, emitted 5 6 7: two agree. `emitted` is shorter than the proposal where another draft was checked.
    """

    proposed: list[int]
    emitted: list[int]
    num_agreed: int

    @property
    def is_open(self) -> bool:
        """All that was emitted agrees and more was proposed: how far it would have gone is unknown."""
        return self.num_agreed == len(self.emitted) < len(self.proposed)

    @property
    def is_whole(self) -> bool:
        return self.num_agreed == len(self.proposed)

    @property
    def gain(self) -> int:
        """Tokens it would have added to a step; where that is open, as many again are taken for granted."""
        return min(2 * self.num_agreed, len(self.proposed)) if self.is_open else self.num_agreed


@dataclass(frozen=True)
class DraftingParts:
    """What a drafter may be built from; `confidence` is the top probability under which a draft had better end."""

    model: Decoder
    cache: KVCache
    confidence: float
    history: History | None = None
    """What answers of the past tell, and texts tell of themselves; None in a build without a compiler."""
    grows_trees: bool = False
    """Whether other continuations than a proposal may be checked beside it."""

    @cached_property
    def heads(self) -> DraftHeads:
        """Drafters share them."""
        return DraftHeads(self.model)


class Drafter(Protocol):
    """Proposes tokens for sequences. Whatever it proposes, the text stays the same; only the passes change.

    One instance serves all sequences of an engine, so what it keeps is kept by sequence id or domain.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    published: ClassVar[str] = ""
    """What its paper reports over plain decoding, on models and machines of its own."""
    is_free: ClassVar[bool] = False
    """Whether a proposal costs no pass of the model. Then it is made in every step, before the policy picks,
    and is judged by what was emitted even where another draft was checked."""
    needs_draft_model: ClassVar[bool] = False
    """Whether it drafts as the sequence's route says, and not at all where that is the model itself."""
    needs_draft_weights: ClassVar[bool] = False
    """Whether it drafts with a low-bit copy of the model, and is absent where there is none."""
    memory: ClassVar[int] = 32
    """Proposals that a sequence's average gain reaches back."""

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        """The drafter of one engine; called only where it `fits`."""
        ...

    @classmethod
    def fits(cls, parts: DraftingParts) -> bool:
        """Whether the parts have what it drafts with."""
        return not cls.needs_draft_weights or parts.model.low_bit is not None

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        """At most `draft_limit` ids for each (a free one up to its `grown_draft_limit`), to follow its last id.

        `row_price` is what a drafted token's row adds to a check, as a share of a plain step: a token that is less
        likely to be accepted costs more than it brings.
        """
        ...

    def branches(self, sequence: Sequence, row_price: float, most: int) -> Paths:
        """Other continuations than this step's proposal, whose tokens are worth their rows; asked only after it.

        With the proposal they have about `most` tokens.
        """
        return ()

    def promise(self, sequence: Sequence) -> float | None:
        """How many tokens of this step's proposal it expects to be accepted; None where it cannot tell."""
        return None

    def can_draft(self, sequence: Sequence) -> bool:
        """Whether it may be picked for this sequence; one that is not free is asked in each step."""
        return True

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        """Hears of every proposal after its step; the emitted ids are not yet among the sequence's."""
        return

    def forget(self, sequence: Sequence) -> None:
        """Drops what it keeps of a sequence that has ended."""
        return


DRAFTERS: dict[str, type[Drafter]] = {}
"""All drafters by name."""

D = TypeVar("D", bound=Drafter)


def register(kind: type[D]) -> type[D]:
    """Class decorator: makes a drafter known."""
    DRAFTERS[kind.name] = kind
    return kind


@dataclass(frozen=True)
class Method:
    """A way to decode that can be asked for: drafters in the order they are preferred, and a source of masks."""

    name: str
    summary: str
    drafters: tuple[str, ...] = ()
    masks: str = DEFAULT_MASKS
    published: str = ""
    """What the paper behind it reports over plain decoding."""

    @property
    def needs_artifact(self) -> bool:
        """Whether it drafts nothing without the masks of a routing artifact."""
        return self.all_drafters(lambda kind: kind.needs_draft_model) and MASK_SOURCES[self.masks].needs_artifact

    @property
    def needs_draft_weights(self) -> bool:
        """Whether it drafts nothing without a low-bit copy of the model."""
        return self.all_drafters(lambda kind: kind.needs_draft_weights)

    def all_drafters(self, needs: Callable[[type[Drafter]], bool]) -> bool:
        return bool(self.drafters) and all(needs(DRAFTERS[name]) for name in self.drafters)


CASCADE = Method(
    "cascade",
    "suffix where words came before, else skip or low-bit; measured gains and costs decide",
    ("suffix" if History.is_built() else "lookup", "skip", "low-bit"),
    # CAS-Spec, arXiv 2510.26843.
    published="1.1-2.3",
)
ADAPTIVE = Method(
    "adaptive",
    "whichever of all drafters gains most now, by measured gains and costs",
    # What `lookup` copies, `suffix` has counted.
    ("suffix" if History.is_built() else "lookup", "recycling", "skip", "low-bit"),
)


def methods() -> dict[str, Method]:
    """All methods by name: plain, each drafter, the skipping drafter with each source of masks, and what chooses."""
    known = [Method(PLAIN, "no drafts: one token a pass")]
    known += [Method(name, kind.summary, (name,), published=kind.published) for name, kind in DRAFTERS.items()]
    known += [
        Method(name, f"skip, {source.summary}", ("skip",), name, source.published)
        for name, source in MASK_SOURCES.items()
    ]
    return {method.name: method for method in [*known, CASCADE, ADAPTIVE]}


def method_named(name: str) -> Method:
    """Raises `ValueError` that lists the known names where there is no such method."""
    known = methods()
    if name not in known:
        *first, last = (repr(each) for each in known)
        raise ValueError(f"Input should be {', '.join(first)} or {last}")
    return known[name]

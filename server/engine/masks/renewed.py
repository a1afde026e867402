"""Masks that are chosen anew while an answer grows: what the sources share that look at its own states."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from server.engine.masks.base import MaskParts, MaskSource
from server.engine.masks.rereading import Reader
from server.engine.sequence import Sequence
from server.engine.types import DraftModel, Route


@dataclass
class Wait:
    """Tokens since the last choice, and how many have to come before the next."""

    interval: int
    tokens: int = 0


class RenewedMask(MaskSource):
    """Chooses after the prompt, and again after `interval` tokens; after twice as many each time it stays the same.

    The texts before make no difference, so nothing is kept but the waits of the running sequences.
    """

    needs_artifact = False
    interval: ClassVar[int] = 64
    longest_interval: ClassVar[int] = 1024

    def __init__(self, parts: MaskParts) -> None:
        self.parts = parts
        self.waits: dict[int, Wait] = {}

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        return cls(parts)

    def first_route(self, sequence: Sequence) -> Route:
        self.waits[sequence.id] = Wait(self.interval)
        return replace(self.parts.nearest(sequence), draft=self.choose(sequence, sequence.ids))

    def next_route(self, sequence: Sequence, emitted: list[int]) -> Route:
        wait = self.waits[sequence.id]
        wait.tokens += len(emitted)
        if wait.tokens < wait.interval:
            return sequence.route
        draft = self.choose(sequence, [*sequence.ids, *emitted])
        stays = draft == sequence.route.draft
        self.waits[sequence.id] = Wait(min(2 * wait.interval, self.longest_interval) if stays else self.interval)
        return replace(sequence.route, draft=draft)

    @abstractmethod
    def choose(self, sequence: Sequence, ids: list[int]) -> DraftModel:
        """The draft from now on; `ids` are all of the text, of which the cache holds those before the cursor."""

    def forget(self, sequence: Sequence) -> None:
        self.waits.pop(sequence.id, None)

    def reader(self, sequence: Sequence, ids: list[int], count: int) -> Reader:
        return Reader.of_last(self.parts.model, self.parts.cache, sequence, ids, count)

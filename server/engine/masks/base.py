"""The seam for masks: what decides, at run time, which sub-layers a sequence's drafts skip.

A new source is one file here with a class marked `@register`, and one import in `__init__.py`. Its name is
then a method: the skipping drafter with this source's masks.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar

from server.engine.kvcache.cache import KVCache
from server.engine.masks.artifact import RoutingArtifact
from server.engine.masks.router import Router
from server.engine.model.decoder import Decoder
from server.engine.sequence import Sequence
from server.engine.types import UNROUTED, Route

DEFAULT_MASKS = "knn"
"""The source of methods that do not name one."""


@dataclass(frozen=True)
class MaskParts:
    """What a source may be built from; artifact and router are None where the engine has no routing artifact."""

    model: Decoder
    cache: KVCache
    artifact: RoutingArtifact | None = None
    router: Router | None = None

    def nearest(self, sequence: Sequence) -> Route:
        """The route of the prompt's domain, whose mask a source may replace; without a router, none."""
        assert sequence.prompt_vector is not None
        return self.router.route(sequence.prompt_vector) if self.router else UNROUTED


class MaskSource(Protocol):
    """Gives each sequence its route, whose draft model has the mask, and may change it as the answer grows.

    One instance serves all sequences of an engine.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    published: ClassVar[str] = ""
    """What its paper reports over plain decoding, on models and machines of its own."""
    needs_artifact: ClassVar[bool] = True

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        """The source of one engine; called only with an artifact where it needs one."""
        ...

    def first_route(self, sequence: Sequence) -> Route:
        """The route after the prompt was read; its vector is `sequence.prompt_vector`."""
        ...

    def next_route(self, sequence: Sequence, emitted: list[int]) -> Route:
        """The route from the next step on; `emitted` are the tokens of this one, not yet among the sequence's ids."""
        return sequence.route

    def forget(self, sequence: Sequence) -> None:
        """Drops what it keeps of a sequence that has ended."""
        return


MASK_SOURCES: dict[str, type[MaskSource]] = {}
"""All sources by name."""

S = TypeVar("S", bound=MaskSource)


def register(kind: type[S]) -> type[S]:
    """Class decorator: makes a source known."""
    MASK_SOURCES[kind.name] = kind
    return kind


def mask_sources(parts: MaskParts) -> dict[str, MaskSource]:
    """The sources that an engine can have, by name."""
    usable = {name: kind for name, kind in MASK_SOURCES.items() if parts.artifact or not kind.needs_artifact}
    return {name: kind.of(parts) for name, kind in usable.items()}

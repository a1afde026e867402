"""What `speculation: {"trace": true}` adds to an answer: where its tokens came from, and where its prompt lies."""

from typing import Self

from pydantic import BaseModel

from server.api.answers.drafts import DraftStrip
from server.engine import StepTexts
from server.generation import RoutedPrompt


class TraceStep(BaseModel):
    """One step of the engine for one choice, in texts of tokens.

    `origin` is the drafter, `patch` where a matrix stood in place of layers, `plain` where nothing was drafted.
    `accepted` are the drafted tokens that the model agreed with, `own` is its own token after them, and `rejected` are
    the drafted ones from the first wrong one on. A token that is only a part of a character has "", and the character
    comes with its last token. All `accepted` and `own` of a choice, joined, are its text.
    """

    origin: str
    accepted: list[str]
    own: str
    rejected: list[str]

    @classmethod
    def of(cls, step: StepTexts) -> Self:
        return cls(origin=step.origin, accepted=list(step.accepted), own=step.own, rejected=list(step.rejected))


class RouteCard(BaseModel):
    """Where the router put the prompt.

    `point` is its place in the plane of `/map`, and `nearest` are the nearest anchors, each as domain and number
    among that domain's anchors there; null and empty without a routing artifact.
    """

    domain: str
    similarity: float | None
    point: tuple[float, float] | None
    nearest: list[tuple[str, int]]
    draft: DraftStrip

    @classmethod
    def of(cls, routed: RoutedPrompt) -> Self:
        route, place = routed
        return cls(
            domain=route.domain,
            similarity=route.similarity,
            point=place.point if place else None,
            nearest=list(place.nearest) if place else [],
            draft=DraftStrip.of(route.draft),
        )

"""What the page shows of the server beside answers: where prompts can lie, and what is going on now."""

from pydantic import BaseModel

from server.api.answers.drafts import DraftStrip


class MapDomain(BaseModel):
    """A domain's draft, the similarity under which a prompt is none of its own, and its anchors in the plane."""

    name: str
    draft: DraftStrip
    threshold: float | None
    anchors: list[tuple[float, float]]


class Map(BaseModel):
    """The anchors of all domains in the plane that separates them best; no domains without a routing artifact."""

    num_layers: int
    domains: list[MapDomain]


class MethodCard(BaseModel):
    """A method that requests may ask for, and what this server lacks for it."""

    name: str
    summary: str
    lacks: str | None


class DomainFigures(BaseModel):
    """A domain's answers over the last minutes; the speed is that of one answer, the speed-up over plain decoding."""

    name: str
    answers: int
    tokens: int
    drafted: int
    accepted: int
    tokens_per_second: float
    speedup: float | None


class Now(BaseModel):
    """The server as it is now, and its figures of the last `window_seconds`."""

    model: str
    version: str
    uptime_seconds: float
    method: str
    methods: list[MethodCard]
    running: int
    slots: int
    waiting: int
    max_waiting: int
    tokens_cached: int
    max_tokens_cached: int
    window_seconds: float
    tokens_per_second: float
    domains: list[DomainFigures]
    grafana: str | None

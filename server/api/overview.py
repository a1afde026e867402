"""What the page shows of the server beside answers: where prompts can lie, and what is going on now."""

import time
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.answers.drafts import DraftStrip
from server.engine import UNROUTED, Route, Router, methods
from server.served_model import ServedModel
from server.telemetry.metrics import own_version
from server.telemetry.window import SECONDS, Totals
from server.tickets import FailureReason
from server.worker import UnavailableError, Worker


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
    """A domain's answers over the last minutes.

    `tokens_per_second` is the speed of one answer, without its first token; 0 where nothing was decoded. `speedup` is
    that over plain decoding, as in the metrics; null until it is known.
    """

    name: str
    answers: int
    tokens: int
    drafted: int
    accepted: int
    tokens_per_second: float
    speedup: float | None


class Now(BaseModel):
    """The server as it is now, and its figures of the last `window_seconds`.

    `tokens_per_second` is of all answers together while any is decoded; 0 where none was.
    """

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


class OverviewApi:
    """The endpoints; `grafana_url` is where more can be seen."""

    def __init__(self, worker: Worker, grafana_url: str | None) -> None:
        self.worker = worker
        self.grafana_url = grafana_url
        self.started_at = time.monotonic()

    @property
    def served(self) -> ServedModel:
        """The model, also while the server drains; raises `UnavailableError`, which is no request that was refused."""
        if self.worker.served is None or not self.worker.is_alive:
            raise UnavailableError(self.worker.unavailable or FailureReason.LOADING)
        return self.worker.served

    async def now(self) -> Now:
        served = self.served
        engine, max_batch = served.engine, served.engine.config.max_batch
        gained = self.worker.metrics.window.gained()
        decoded = sum(value for (figure, _), value in gained.items() if figure == "tokens")
        return Now(
            model=served.name,
            version=own_version(),
            uptime_seconds=time.monotonic() - self.started_at,
            method=engine.config.method,
            methods=[
                MethodCard(name=name, summary=method.summary, lacks=engine.lacks(name))
                for name, method in methods().items()
            ],
            running=engine.num_running,
            slots=max_batch,
            waiting=engine.num_waiting,
            max_waiting=self.worker.tickets.limits.max_sequences - max_batch,
            tokens_cached=engine.num_held,
            max_tokens_cached=engine.cache_tokens,
            window_seconds=SECONDS,
            tokens_per_second=rate(decoded, gained["decode", ""]),
            domains=[self.figures(domain, gained) for domain in served.domains or [UNROUTED.domain]],
            grafana=self.grafana_url,
        )

    async def map(self) -> Map:
        served = self.served
        router = served.engine.router
        domains = [self.mapped(route, router) for route in router.all] if router else []
        return Map(num_layers=served.checkpoint.config.num_layers, domains=domains)

    def mapped(self, route: Route, router: Router) -> MapDomain:
        name, anchors = route.domain, router.map.get(route.domain, [])
        draft, threshold = DraftStrip.of(route.draft), router.threshold(route.domain)
        return MapDomain(name=name, draft=draft, threshold=threshold, anchors=anchors)

    def figures(self, domain: str, gained: Totals) -> DomainFigures:
        answers = int(gained["answers", domain])
        decoded = int(gained["tokens", domain])
        return DomainFigures(
            name=domain,
            answers=answers,
            # Each has its first token from the reading of its prompt.
            tokens=answers + decoded,
            drafted=int(gained["drafted", domain]),
            accepted=int(gained["accepted", domain]),
            tokens_per_second=rate(decoded, gained["seconds", domain]),
            speedup=self.worker.metrics.speedups.of(domain),
        )

    def add_to(self, router: APIRouter, errors: dict[int | str, dict[str, Any]]) -> None:
        router.add_api_route("/now", self.now, responses=errors)
        router.add_api_route("/map", self.map, responses=errors)


def rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0

"""What one client may ask for: so many requests at once, and so many a minute. They are counted where they come in.

A place belongs to the call that serves the request, in the same process, so it is free once that has ended: after the
answer, when the client leaves, when a replica behind is lost, at an error. Nothing is to be given back by others.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import RateLimitError
from server.api.http.auth import client_of

MINUTE = 60.0
ROUNDING = 1e-6
COUNTED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""Paths of requests that generate text, which are those that cost something."""


@dataclass(frozen=True)
class ClientLimits:
    """Most requests of one client at once, and those that it may begin in a minute; None: any number."""

    at_once: int | None = None
    per_minute: int | None = None

    def __bool__(self) -> bool:
        return self.at_once is not None or self.per_minute is not None


class ClientLimitError(RateLimitError):
    """One client's request beyond what it may have; the next one has its chance after `seconds`."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        milliseconds = math.ceil(1000 * seconds)
        self.headers = {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(milliseconds)}


class Counts:
    """The requests of all clients; `clock` tells seconds."""

    def __init__(self, limits: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.open: Counter[str] = Counter()
        self.paid_until: dict[str, float] = {}
        """When a client that begins no more has all of its rate again; those that have it are not kept for long."""
        self.swept_at = clock()

    def take(self, client: str) -> None:
        """A place for one more request, which is to be given back; raises `ClientLimitError`."""
        if self.limits.at_once is not None and self.open[client] >= self.limits.at_once:
            raise ClientLimitError(
                f"Too many requests: a client may have {self.limits.at_once} unfinished at once.", 1.0
            )
        if self.limits.per_minute is not None:
            self.pay(client, self.limits.per_minute)
        self.open[client] += 1

    def give_back(self, client: str) -> None:
        self.open[client] -= 1
        if not self.open[client]:
            del self.open[client]

    def pay(self, client: str, per_minute: int) -> None:
        """Takes one request of the rate: as many at once as a minute has, and then one at a time."""
        now = self.clock()
        self.sweep(now)
        paid_until = max(self.paid_until.get(client, now), now) + MINUTE / per_minute
        too_early = paid_until - now - MINUTE
        if too_early > ROUNDING:
            raise ClientLimitError(f"Too many requests: a client may begin {per_minute} a minute.", too_early)
        self.paid_until[client] = paid_until

    def sweep(self, now: float) -> None:
        if now >= self.swept_at + MINUTE:
            self.paid_until = {client: until for client, until in self.paid_until.items() if until > now}
            self.swept_at = now


class ClientGuard:
    """Middleware that answers 429 where a client has too many requests, before a body is read; `on_full` counts it."""

    def __init__(self, app: ASGIApp, limits: ClientLimits, on_full: Callable[[], None]) -> None:
        self.app = app
        self.counts = Counts(limits)
        self.on_full = on_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in COUNTED:
            await self.app(scope, receive, send)
            return
        client = client_of(scope) or ""
        try:
            self.counts.take(client)
        except ClientLimitError:
            self.on_full()
            raise
        try:
            await self.app(scope, receive, send)
        finally:
            self.counts.give_back(client)

"""Bearer keys: who may use the server. Health checks stay open, so that orchestrators need no key."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import AuthenticationError

OPEN_PATHS = frozenset({"/health", "/ready"})


class KeyGuard:
    """Middleware that answers 401 unless a request carries one of `keys`; it runs before any body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self.is_allowed(Headers(scope=scope)):
            await self.app(scope, receive, send)
        else:
            error = AuthenticationError("Incorrect API key provided; send it as `Authorization: Bearer KEY`.")
            await error.response(scope, receive, send)

    def is_allowed(self, headers: Headers) -> bool:
        """Compares with every key in full, so that the time taken tells nothing."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)

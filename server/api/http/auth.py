"""Bearer keys: who may use the server, and whose request one is.

Health checks stay open, for orchestrators have no key, and so does the page, which asks its user for one.
"""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import AuthenticationError

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = "/page/"
ANTHROPIC_HEADER = "x-api-key"
"""Where Anthropic's clients send their key."""
OWNER = "owner"
"""Where a request's state has the name of its key, which is not the key."""


class KeyGuard:
    """Middleware that answers 401 unless a request carries one of `keys`; it runs before any body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        owner = self.owner(Headers(scope=scope))
        if owner is None:
            error = AuthenticationError("Incorrect API key provided; send it as `Authorization: Bearer KEY`.")
            await error.response(scope, receive, send)
            return
        scope.setdefault("state", {})[OWNER] = owner
        await self.app(scope, receive, send)

    def owner(self, headers: Headers) -> str | None:
        """The name of the given key, None where it is no key; compares with every one in full.

        So the time taken tells nothing.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get(ANTHROPIC_HEADER, "")
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self.keys]
        if not any(matches):
            return None
        return f"key {matches.index(True)}"


def client_of(scope: Scope) -> str | None:
    """Who takes turns with others: the name of the request's key; where there are no keys, the address it came from."""
    key: str | None = scope.get("state", {}).get(OWNER)
    address = scope.get("client")
    return key or (address[0] if address else None)


def is_open(path: str) -> bool:
    """Whether it needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)

"""The same engine as replicas on Ray Serve (extra `ray`): an ingress that routes with a purpose, and who is behind it.

`serve run server.cluster:app` serves what the `KNNSSD_*` variables say.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`app`, the builder that Serve asks for; Ray is imported only then."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from server.cluster.application import app

    return app

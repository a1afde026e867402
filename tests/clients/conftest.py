"""A server that asks for a key and takes short bodies only."""

from collections.abc import Iterator

import pytest

from server.app import AppConfig
from server.engine import Checkpoint
from tests.api.live import make_worker, serve


@pytest.fixture(scope="module")
def guarded_url(checkpoint: Checkpoint) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(api_keys=("first",), max_body_bytes=10_000)) as url:
        yield url

"""The kernels' builds, one at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.model import kernels

BUILDS = [name for name, needed in kernels.BUILDS if needed <= kernels.processor_flags()]


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each build that this processor runs, in use for the test."""
    path = next((Path(kernels.__file__).parent / "native").glob(f"{request.param}.*so"), None)
    if path is None:
        pytest.skip("not compiled here: sanitizers watch the processor's best build alone")
    monkeypatch.setattr(kernels, "build", lambda: path)
    kernels.library.cache_clear()
    yield request.param
    kernels.library.cache_clear()

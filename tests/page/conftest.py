"""One Chromium for all tests of the page, skipped where there is none; and a server that they only read from."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve
from tests.page.browser import CHROMIUM, DRIVER, Page, start_browser


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser is installed: make browser")
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """A page without faults: an error of a script or a breach of the policy fails the test that it happened in."""
    page = Page(driver)
    page.faults()
    yield page
    faults = page.faults()
    driver.get("about:blank")
    assert faults == []


@pytest.fixture(scope="session")
def base_url(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield url

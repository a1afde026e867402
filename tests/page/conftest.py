"""One Chromium for all tests of the page; they are skipped where there is none."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

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

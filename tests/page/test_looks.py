"""The page as a whole: small, within its policy, as wide as any window, and open to all (axe-core)."""

import os
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from server.page.page import FOLDER
from tests.page.browser import Page

AXE = Path(os.environ.get("AXE_CORE", Path(__file__).parent / "npm" / "node_modules" / "axe-core" / "axe.min.js"))
VIEWS = ["chat", "drafts", "race", "now"]
MOST_BYTES = 200_000
OUTSIDE = """
return [...document.querySelectorAll("button, input, select, textarea")]
  .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML)
"""


def fill(page: Page, url: str, width: int, *, is_dark: bool = False) -> None:
    """Opens the page with an answer in it and everything unfolded."""
    page.open(url, width, is_dark=is_dark)
    page.wait(page.is_connected)
    page.find("#settings-toggle").click()
    page.set("max_tokens", "40")
    page.ask("tell me")
    page.wait(lambda: page.all(".answer") != [] and page.is_idle())


def test_the_page_is_small_and_comes_from_here() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in files:
        text = path.read_text()
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text, path.name
        assert "<script>" not in text and "style=" not in text, path.name


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_nothing_is_wider_than_the_window(page: Page, base_url: str, width: int) -> None:
    fill(page, base_url, width)
    for view in VIEWS:
        page.view(view)
        assert not page.is_too_wide(), view
        assert page.run(OUTSIDE) == [], view


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make browser")
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_serious(page: Page, base_url: str, width: int, is_dark: bool) -> None:
    fill(page, base_url, width, is_dark=is_dark)
    page.run(AXE.read_text())
    for view in VIEWS:
        page.view(view)
        if view == "now":
            page.wait(lambda: page.says("#now-view", "Slots"))
        page.run("axe.run({resultTypes: ['violations']}).then((found) => { window.found = found.violations })")
        page.wait(lambda: bool(page.run("return window.found !== undefined")))
        found = page.run("const found = window.found; delete window.found; return found")
        told = [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in found]
        assert told == [], view


def test_all_is_reached_by_the_tab_key(page: Page, base_url: str) -> None:
    page.open(base_url)
    page.wait(page.is_connected)
    reached = set()
    for _ in range(20):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.run("const e = document.activeElement; return e.id || e.name || e.textContent.trim()"))
    assert {"Chat", "Race", "Now", "theme", "prompt", "settings-toggle", "new-chat", "shown", "send"} <= reached


def test_a_chosen_theme_stays(page: Page, base_url: str) -> None:
    page.open(base_url)
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    light = page.run(ground)
    page.find("#theme").click()
    page.find("#theme").click()
    dark = page.run(ground)
    assert dark != light and page.find("#theme").get_attribute("aria-label") == "Theme: dark"
    page.driver.refresh()
    assert page.run(ground) == dark

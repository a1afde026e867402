"""Takes the README's pictures of the page: the default model answers, a real browser shows it.

PYTHONPATH=. .venv/bin/python tests/page/pictures.py [FOLDER]
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from server.engine import EngineConfig
from server.served_model import load
from server.settings import read_settings
from server.telemetry.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import serve
from tests.page.browser import Page, start_browser

FOLDER = Path(__file__).parents[2] / "server" / "page" / "pictures"


def main(folder: Path) -> None:
    source = read_settings([]).source
    worker = Worker(lambda: load(source, EngineConfig()), QueueLimits(64, 100_000), Metrics())
    driver = start_browser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with serve(worker) as url:
            page = Page(driver)
            for name, shoot in PICTURES.items():
                shoot(page, url)
                save(page, folder / f"{name}.webp")
    finally:
        driver.quit()


def save(page: Page, path: Path) -> None:
    Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB").save(path, lossless=True, method=6)
    print(f"{path}: {path.stat().st_size // 1024} KB")


QUERY = "Write a SQL query that lists the names of all customers with more than three orders."


def converse(page: Page, text: str, max_tokens: int = 160) -> None:
    """Asks greedily and lets the answer end."""
    before = len(page.all(".answer"))
    page.set("temperature", "0")
    page.set("max_tokens", str(max_tokens))
    page.run("const field = document.getElementById('prompt'); field.value = arguments[0]; field.focus()", text)
    page.find("#send").click()
    page.wait(lambda: len(page.all(".answer")) > before and page.is_idle())
    settle(page)


def story(page: Page) -> str:
    """The page's own example."""
    page.run("document.querySelectorAll('#examples button')[1].click()")
    return str(page.run("return document.getElementById('prompt').value"))


def settle(page: Page) -> None:
    """Two frames and a drawing of the panel later, nothing moves any more."""
    page.run("window.settled = false; setTimeout(() => requestAnimationFrame(() => { window.settled = true }), 500)")
    page.wait(lambda: bool(page.run("return window.settled")))


def chat(page: Page, url: str) -> None:
    page.open(url, 1280, 1000)
    page.wait(page.is_connected)
    # What drafts gain is known after some answers.
    for hero in ("a small boat", "an old clock", "a brave hen"):
        converse(page, story(page).replace("a fox found a blue umbrella", f"there was {hero}"), 100)
    page.find("#new-chat").click()
    converse(page, story(page))
    page.run("scrollTo(0, 0)")
    step = page.all(".answer .step:has(.token + .token):has(del)")[-1]
    page.run("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", step)
    settle(page)


def race(page: Page, url: str) -> None:
    page.open(url, 1280, 1000, is_dark=True)
    page.wait(page.is_connected)
    page.view("race")
    page.wait(lambda: len(page.all(".lane option")) > 4)
    page.run("document.getElementById('race-prompt').value = arguments[0]", QUERY)
    page.find(".race-form .main").click()
    page.wait(lambda: page.says(".verdict", "as fast"))
    settle(page)


def phone(page: Page, url: str) -> None:
    page.open(url, 390, 844, is_dark=True)
    page.wait(page.is_connected)
    converse(page, QUERY)
    page.run("scrollTo(0, 0)")
    settle(page)


def phone_drafts(page: Page, url: str) -> None:
    page.find("#new-chat").click()
    converse(page, story(page))
    page.view("drafts")
    page.run("scrollTo(0, 0)")
    settle(page)


def phone_map(page: Page, url: str) -> None:
    page.run("document.querySelector('.map').scrollIntoView({block: 'end'})")
    page.run("scrollBy(0, 999)")
    settle(page)


PICTURES: dict[str, Callable[[Page, str], None]] = {
    "chat": chat,
    "race": race,
    "phone": phone,
    "phone-drafts": phone_drafts,
    "phone-map": phone_map,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)

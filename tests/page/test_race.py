"""The race and the view of now, in a real browser."""

import httpx
import pytest

from server.engine import Checkpoint
from tests.api.live import make_worker, serve
from tests.page.browser import Page

VERDICT = ".verdict"


def lanes(page: Page) -> list[str]:
    text_of = "const c = t.cloneNode(true); c.querySelectorAll('del').forEach((e) => e.remove()); return c.textContent"
    return list(page.run(f"return [...document.querySelectorAll('.lane .tokens')].map((t) => {{{text_of}}})"))


@pytest.mark.parametrize("order", ["together", "alone"])
@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_two_methods_end_with_the_same_text(page: Page, base_url: str, order: str, temperature: str) -> None:
    page.open(base_url)
    page.wait(page.is_connected)
    page.view("race")
    page.wait(lambda: len(page.all(".lane option")) > 4)
    page.run("document.querySelectorAll('.lane select')[1].value = 'skip'")
    page.run("document.querySelectorAll('.race-form select')[0].value = arguments[0]", order)
    for place, value in ((0, "60"), (1, temperature)):
        page.run("document.querySelectorAll('.race-form input')[arguments[0]].value = arguments[1]", place, value)
    page.run("document.getElementById('race-prompt').value = 'tell me'")
    page.find(".race-form .main").click()
    page.wait(lambda: page.says(VERDICT, "as fast"))
    assert page.says(VERDICT, "The same text")
    plain, skip = lanes(page)
    assert plain == skip != ""
    assert page.all(".lane:nth-child(2) .o-skip") and not page.all(".lane:nth-child(1) .step")
    clocks = [float(clock.text.split()[0]) for clock in page.all(".clock")]
    assert all(clock > 0 for clock in clocks) and len(page.all(".lane.first")) == 1


def test_a_race_can_be_stopped(page: Page, checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    with serve(worker) as url:
        page.open(url)
        page.wait(page.is_connected)
        page.view("race")
        engine.gate.clear()
        page.find(".race-form .main").click()
        page.wait(lambda: page.says(".race-form .main", "Stop"))
        page.find(".race-form .main").click()
        page.wait(lambda: page.says(VERDICT, "Stopped"))
        engine.gate.set()


def test_now_shows_what_the_server_tells(page: Page, base_url: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    assert httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=30).status_code == 200
    page.open(base_url)
    page.view("now")
    page.wait(lambda: page.says("#now-view", "Slots"))
    now = httpx.get(f"{base_url}/now").json()
    assert page.says("#now-view", f"0 of {now['slots']}")
    assert page.all(".domains tbody tr")

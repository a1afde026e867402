"""Conversations in a real browser: answers come step by step, can be stopped, made anew and walked through."""

import threading

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import GatedEngine, make_worker, serve, wait_until
from tests.page.browser import Page

QUESTION = "tell me"


class Turnstile(threading.Event):
    """A gate that lets as many steps through as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set() or self.permits.acquire(timeout=timeout)

    def let(self, steps: int) -> None:
        self.permits.release(steps)

    def open(self) -> None:
        self.set()
        self.permits.release()


def whole_answer(url: str, turns: list[str], **fields: object) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    body = {"model": "tiny", "messages": messages, "temperature": 0, **fields}
    return str(
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()["choices"][0]["message"]["content"]
    )


def hold(engine: GatedEngine) -> Turnstile:
    turnstile = Turnstile()
    engine.gate = turnstile
    return turnstile


def greedy(page: Page, max_tokens: int = 40) -> None:
    page.set("temperature", "0")
    page.set("max_tokens", str(max_tokens))


def test_an_answer_comes_step_by_step_and_is_the_apis(
    page: Page, checkpoint: Checkpoint, tiny_artifact: RoutingArtifact
) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        expected = whole_answer(url, [QUESTION], max_tokens=40)
        turnstile = hold(engine)
        page.open(url)
        greedy(page)
        page.ask(QUESTION)
        turnstile.let(8)
        page.wait(lambda: page.all(".answer .tokens") != [] and page.answer() != "")
        assert page.is_shown("#stop") and not page.is_shown("#send")
        assert len(page.answer()) < len(expected) and expected.startswith(page.answer())
        turnstile.open()
        page.wait(page.is_idle)
        assert page.answer() == expected
        assert page.says("#spoken", expected.split()[-1])


def test_stop_stops_the_engine_and_keeps_what_came(page: Page, checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    with serve(worker) as url:
        turnstile = hold(engine)
        page.open(url)
        greedy(page, 200)
        page.ask(QUESTION)
        turnstile.let(8)
        page.wait(lambda: page.all(".answer .tokens") != [] and page.answer() != "")
        page.find("#stop").click()
        page.wait(page.is_idle)
        turnstile.open()
        wait_until(lambda: not engine.has_work)
        assert page.says(".answer footer", "Stopped")
        assert 0 < len(page.answer()) < 200
        assert page.run("return document.activeElement.id") == "prompt"


def test_a_second_turn_knows_the_first_and_can_be_made_anew(page: Page, base_url: str) -> None:
    page.open(base_url)
    greedy(page, 20)
    page.ask(QUESTION)
    page.wait(page.is_idle)
    page.ask("and then?")
    page.wait(lambda: len(page.all(".answer")) == 2 and page.is_idle())
    first, second = page.answer(0), page.answer(1)
    assert second == whole_answer(base_url, [QUESTION, first, "and then?"], max_tokens=20)
    (again,) = [button for button in page.all(".again") if button.is_displayed()]
    page.set("max_tokens", "9")
    again.click()
    page.wait(lambda: len(page.all(".answer")) == 2 and page.is_idle() and page.answer(1) != second)
    assert page.answer(1) == whole_answer(base_url, [QUESTION, first, "and then?"], max_tokens=9)
    page.find("#new-chat").click()
    assert page.all(".message") == [] and page.is_shown("#welcome")


def test_the_system_prompt_and_the_sampling_fields_are_sent(page: Page, base_url: str) -> None:
    page.open(base_url)
    page.find("#settings-toggle").click()
    page.find("[name=system]").send_keys("be brief")
    for name, value in {"temperature": "0.8", "top_p": "0.9", "max_tokens": "12", "seed": "7"}.items():
        page.find(f"[name={name}]").clear()
        page.find(f"[name={name}]").send_keys(value)
    page.ask(QUESTION)
    page.wait(page.is_idle)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTION}]
    body = {"model": "tiny", "messages": messages, "temperature": 0.8, "top_p": 0.9, "max_tokens": 12, "seed": 7}
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=30).json()
    assert page.answer() == answer["choices"][0]["message"]["content"]
    page.set("temperature", "99")
    page.ask("again")
    assert len(page.all(".answer")) == 1 and page.is_shown("#settings"), "a wrong field is shown and nothing is sent"


def test_drafted_tokens_have_their_origin_and_their_card(page: Page, base_url: str) -> None:
    page.open(base_url)
    greedy(page, 60)
    page.wait(lambda: page.all("[name=method] [value=skip]") != [])
    page.set("method", "skip")
    page.ask(QUESTION)
    page.wait(page.is_idle)
    assert page.all(".answer .step.o-skip")
    assert page.says("#inspector", "skipped layers") and page.says("#inspector", "of drafts accepted")
    page.find(".answer .tokens").send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.is_shown("#step-card"))
    assert page.says("#step-card", "skipped layers") and page.says("#spoken-step", "accepted")
    page.find(".answer .tokens").send_keys(Keys.ESCAPE)
    assert not page.is_shown("#step-card")
    page.wait(lambda: page.all("#inspector .map .prompt") != [])
    assert len(page.all("#inspector .strip .row:first-child i")) == 4


@pytest.mark.parametrize("width", [320, 1280])
def test_a_key_press_and_a_click_do_the_same(page: Page, base_url: str, width: int) -> None:
    page.open(base_url, width)
    greedy(page, 12)
    page.wait(page.is_connected)
    page.find("#examples button").click()
    page.find("#send").click()
    page.wait(lambda: page.all(".answer") != [] and page.is_idle())
    clicked = page.answer()
    page.find("#new-chat").click()
    page.find("#examples button").send_keys(Keys.ENTER)
    page.find("#prompt").send_keys(Keys.ENTER)
    page.wait(lambda: page.all(".answer") != [] and page.is_idle())
    assert page.answer() == clicked


def test_an_answer_is_copied_as_it_was_written(page: Page, base_url: str) -> None:
    page.open(base_url)
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    greedy(page, 20)
    page.ask(QUESTION)
    page.wait(page.is_idle)
    page.find(".answer footer button").click()
    page.wait(lambda: page.says(".answer footer button", "Copied"))
    page.run("navigator.clipboard.readText().then((text) => { window.copied = text })")
    page.wait(lambda: page.run("return window.copied") is not None)
    assert page.run("return window.copied") == page.answer()

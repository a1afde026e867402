"""What goes wrong is told in plain words: keys, a full queue, a model that loads, a server that is gone."""

import threading
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from server.app import AppConfig
from server.engine import Checkpoint
from server.served_model import ServedModel
from tests.api.live import lose_model, make_worker, serve, serve_full
from tests.page.browser import Page

OLDER_SERVER = """
const ask = window.fetch;
const refusal = { error: { message: "Unknown parameter: 'speculation.trace'." } };
window.fetch = (path, options) => {
  if (path === "now" || path === "map") return Promise.resolve(new Response("{}", { status: 404 }));
  if (options.body?.includes('"trace"')) return Promise.resolve(new Response(JSON.stringify(refusal), { status: 400 }));
  return ask(path, options);
};
"""
"""Makes this server look like one from before there were traces, a map and figures of now."""


@pytest.fixture(scope="module")
def guarded_url(checkpoint: Checkpoint) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(api_keys=("right",))) as url:
        yield url


def give_key(page: Page, key: str) -> None:
    page.wait(lambda: page.is_shown("#key-dialog"))
    page.find("#key").send_keys(key, Keys.ENTER)


def test_a_key_is_asked_for_and_a_wrong_one_told(page: Page, guarded_url: str) -> None:
    page.open(guarded_url)
    page.wait(lambda: page.is_shown("#key-dialog"))
    assert page.says("#key-reason", "asks for an API key")
    assert page.run("return document.activeElement.id") == "key"
    give_key(page, "wrong")
    page.wait(lambda: page.says("#key-reason", "does not know this key"))
    give_key(page, "right")
    page.wait(page.is_connected)
    page.set("max_tokens", "8")
    page.ask("hi")
    page.wait(lambda: page.all(".answer") != [] and page.is_idle())
    assert page.answer() and not page.is_shown(".trouble")
    assert page.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
    assert "right" not in page.driver.current_url and page.driver.get_cookies() == []


def test_without_a_key_the_page_says_what_is_missing(page: Page, guarded_url: str) -> None:
    page.open(guarded_url)
    page.wait(lambda: page.is_shown("#key-dialog"))
    page.find("#key-cancel").click()
    page.wait(lambda: page.says("#notice", "only with an API key"))


def test_a_full_queue_is_told(page: Page, checkpoint: Checkpoint) -> None:
    with serve_full(checkpoint) as url:
        page.open(url)
        page.ask("hi")
        page.wait(lambda: page.says(".answer .trouble", "too many requests"))
        page.wait(page.is_idle)


def test_a_model_that_loads_is_waited_for(page: Page, checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    load, ready = worker.load, threading.Event()

    def slow() -> ServedModel:
        ready.wait(60)
        return load()

    worker.load = slow
    with serve(worker, is_awaited=False) as url:
        page.open(url)
        page.wait(lambda: page.says("#notice", "loading"))
        ready.set()
        page.wait(page.is_connected)
        assert not page.is_shown("#notice")


def test_an_engine_that_dies_is_told_and_what_came_stays(page: Page, checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    engine.fatal_step = 12
    with serve(worker) as url:
        lose_model(worker)
        page.open(url)
        page.ask("hi")
        page.wait(lambda: page.says(".answer .trouble", "engine"))
        assert page.answer()


def test_a_server_that_is_gone_is_told(page: Page, checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker) as url:
        page.open(url)
        page.wait(page.is_connected)
    page.ask("hi")
    page.wait(lambda: page.says(".answer .trouble", "cannot be reached"))
    page.view("now")
    page.wait(lambda: page.says("#now-view", "cannot be reached"))


def test_a_server_that_knows_no_traces_still_answers(page: Page, base_url: str) -> None:
    script = page.command("Page.addScriptToEvaluateOnNewDocument", source=OLDER_SERVER)
    try:
        page.open(base_url)
        page.set("max_tokens", "12")
        page.ask("hi")
        page.wait(lambda: page.all(".answer") != [] and page.is_idle())
        assert page.answer() and not page.is_shown(".answer .trouble")
        assert page.says("#inspector", "of drafts accepted") and not page.all("#inspector .map")
        page.view("now")
        page.wait(lambda: page.says("#now-view", "/metrics"))
    finally:
        page.command("Page.removeScriptToEvaluateOnNewDocument", **script)

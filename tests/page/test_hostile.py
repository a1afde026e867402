"""Whatever a model writes stays text: scripts, entities, links that run, endless words, deep nesting."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from server.engine import Checkpoint, StepTexts
from server.generation import Piece
from server.tickets import Ticket
from server.worker import Worker
from tests.api.live import make_worker, serve
from tests.page.browser import Page

SCRIPTS = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><svg onload="hacked=1">
&lt;script&gt; &amp;amp; &#60;b&#62; </div></article><iframe src="javascript:hacked=1"></iframe>

[click](javascript:window.hacked=1) [data](data:text/html,<script>hacked=1</script>) ![pixel](http://127.0.0.1:9/p.png)

<b>`<i>`</b> [ok](https://example.org/?a=1&b="x")

```html"><script>window.hacked = 1</script>
</pre><script>window.hacked = 1</script>
"""
PIECE = 997
LONG = "x" * 100_000
REPEATED = ["[", "*", "`a", ">", "**a", "- ", "|", "_a", "[a](", "~~", "# ", "1. "]


class ScriptedWorker(Worker):
    """A worker whose model writes the script, whatever it really wrote, and whose drafts were as hostile."""

    script = ""

    async def pieces(self, ticket: Ticket) -> AsyncIterator[Piece]:
        rest = self.script
        async for piece in super().pieces(ticket):
            while rest:
                text, rest = rest[:PIECE], rest[PIECE:]
                step = StepTexts("<b>", (text[:9], text[9:]), "", ("<b>drafted</b>",))
                yield replace(piece, text=text, outcome=None, steps=(step,))
            if piece.outcome:
                yield replace(piece, text="", steps=())


@pytest.fixture(scope="module")
def scripted(checkpoint: Checkpoint) -> Iterator[tuple[ScriptedWorker, str]]:
    real, _ = make_worker(checkpoint, None)
    worker = ScriptedWorker(real.load, real.tickets.limits, real.metrics)
    with serve(worker) as url:
        yield worker, url


@contextmanager
def answered(page: Page, scripted: tuple[ScriptedWorker, str], script: str, width: int = 1280) -> Iterator[None]:
    worker, url = scripted
    worker.script = script
    page.open(url, width)
    page.set("max_tokens", "2")
    page.ask("hi")
    page.wait(lambda: page.all(".answer") != [] and page.is_idle())
    yield


def test_markup_is_shown_and_never_run(page: Page, scripted: tuple[ScriptedWorker, str]) -> None:
    with answered(page, scripted, SCRIPTS):
        assert page.answer() == SCRIPTS and page.says(".answer del", "<b>drafted</b>")
        page.run("document.querySelector('[name=shown][value=prose]').click()")
        page.wait(lambda: page.is_shown(".answer .prose"))
        for text in ("<script>window.hacked = 1</script>", "&lt;script&gt; &amp;amp; &#60;b&#62;", "<svg onload="):
            assert page.says(".answer .prose", text)
        assert not page.run("return window.hacked ?? null")
        assert page.all(".answer :is(script, img, svg, iframe, b, i)") == []
        links = page.run("return [...document.querySelectorAll('.answer a')].map((a) => a.getAttribute('href'))")
        assert links == ["http://127.0.0.1:9/p.png", 'https://example.org/?a=1&b="x"']


def test_the_users_own_markup_is_text_as_well(page: Page, scripted: tuple[ScriptedWorker, str]) -> None:
    with answered(page, scripted, "ok"):
        page.find("#prompt").clear()
        page.ask("<img src=x onerror=hacked=1>")
        page.wait(lambda: len(page.all(".answer")) == 2 and page.is_idle())
        assert page.all(".message img") == [] and not page.run("return window.hacked ?? null")


@pytest.mark.parametrize("width", [320, 1920])
def test_an_endless_word_breaks(page: Page, scripted: tuple[ScriptedWorker, str], width: int) -> None:
    with answered(page, scripted, LONG, width):
        assert page.answer() == LONG and not page.is_too_wide()
        page.run("document.querySelector('[name=shown][value=prose]').click()")
        page.wait(lambda: page.is_shown(".answer .prose"))
        assert page.run("return document.querySelector('.answer .prose').textContent") == LONG
        assert not page.is_too_wide()


def test_text_that_parsers_choke_on_is_drawn(page: Page, scripted: tuple[ScriptedWorker, str]) -> None:
    script = "\n\n".join(text * 10_000 for text in REPEATED)
    with answered(page, scripted, script):
        page.run("document.querySelector('[name=shown][value=prose]').click()")
        page.wait(lambda: page.is_shown(".answer .prose"))
        assert page.says(".answer .prose", "[" * 10_000) and not page.is_too_wide()

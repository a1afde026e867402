"""Threads for what takes long on either side of the engine: tokenising, compiling grammars, writing large answers.

Each kind of work has its own, and few of them: a short prompt never waits behind a long one, and the kernels keep their
processors.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")

LONG_TEXT = 1 << 15
"""Characters of a text that takes tens of milliseconds to tokenise."""


class Lane(StrEnum):
    SHORT_TEXTS = "short_texts"
    LONG_TEXTS = "long_texts"
    GRAMMARS = "grammars"
    ANSWERS = "answers"

    @classmethod
    def of_text(cls, num_characters: int) -> "Lane":
        return cls.LONG_TEXTS if num_characters > LONG_TEXT else cls.SHORT_TEXTS


class Lanes:
    """One thread for each lane; work of a lane is done in the order in which it came."""

    def __init__(self) -> None:
        self.threads = {lane: ThreadPoolExecutor(1, f"lane_{lane}") for lane in Lane}

    async def run(self, lane: Lane, work: Callable[..., Result], *arguments: object) -> Result:
        """What the work returns or raises; cancelled before its turn, it is not done at all."""
        return await asyncio.get_running_loop().run_in_executor(self.threads[lane], partial(work, *arguments))

    def close(self) -> None:
        """Waits for nothing: what is not begun is dropped."""
        for thread in self.threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

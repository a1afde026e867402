"""instructor, in the modes that fit OpenAI's chats and responses."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, PLAIN, REFUSED, WRONG, Boat

instructor = pytest.importorskip("instructor")
core = pytest.importorskip("instructor.core")
MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": BOAT}], "temperature": 0}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.v1, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("mode", MODES)
def test_an_object(served: Served, client: openai.OpenAI, mode: str) -> None:
    limit = {"max_output_tokens": 200} if mode.startswith("RESPONSES") else {"max_tokens": 200}
    patched = instructor.from_openai(client, mode=instructor.Mode[mode])
    assert isinstance(patched.create(model=served.model, response_model=Boat, max_retries=2, **ASKED, **limit), Boat)


def test_a_retry(served: Served, client: openai.OpenAI) -> None:
    """An answer that the client's own check refuses is sent back with the error, and asked for again."""
    seen = []

    class Refused(Boat):
        def model_post_init(self, context) -> None:
            seen.append(self)
            if len(seen) < 2:
                raise ValueError("once more, please")

    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    patched.create(model=served.model, response_model=Refused, max_retries=3, max_tokens=200, **ASKED)
    assert len(seen) == 2


def test_a_partial_object(served: Served, client: openai.OpenAI) -> None:
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    found = list(patched.create_partial(model=served.model, response_model=Boat, max_tokens=200, **ASKED))
    assert found[-1].kind and found[-1].length is not None


def test_plain_and_streamed(served: Served, client: openai.OpenAI) -> None:
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    asked = {"model": served.model, "response_model": None, "temperature": 0, "max_tokens": 60}
    asked["messages"] = [{"role": "user", "content": GREETING}]
    text = patched.create(**asked).choices[0].message.content
    assert (
        text and "".join(chunk.choices[0].delta.content or "" for chunk in patched.create(**asked, stream=True)) == text
    )


def test_fields_beyond_openais_and_errors(served: Served, client: openai.OpenAI) -> None:
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    told = {"response_model": Boat, "max_tokens": 200, "max_retries": 0, **ASKED}
    assert patched.create(model=served.model, extra_body=PLAIN, **told)
    with pytest.raises(core.InstructorRetryException, match=REFUSED):
        patched.create(model=served.model, extra_body=WRONG, **told)
    with pytest.raises(core.InstructorRetryException, match="does not exist"):
        patched.create(model="absent", **told)

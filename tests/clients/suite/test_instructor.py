"""instructor, in the modes that fit OpenAI's chats and responses."""

import openai
import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, Boat

instructor = pytest.importorskip("instructor")
MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")


@pytest.mark.parametrize("mode", MODES)
def test_an_object(served: Served, mode: str) -> None:
    with openai.OpenAI(base_url=served.v1, api_key="none", max_retries=0) as client:
        told = {"messages": [{"role": "user", "content": BOAT}], "response_model": Boat, "max_retries": 2}
        limit = {"max_output_tokens": 200} if mode.startswith("RESPONSES") else {"max_tokens": 200}
        patched = instructor.from_openai(client, mode=instructor.Mode[mode])
        assert isinstance(patched.create(model=served.model, temperature=0, **told, **limit), Boat)


def test_a_retry(served: Served) -> None:
    """An answer that the client's own check refuses is sent back with the error, and asked for again."""
    seen = []

    class Refused(Boat):
        def model_post_init(self, context) -> None:
            seen.append(self)
            if len(seen) < 2:
                raise ValueError("once more, please")

    with openai.OpenAI(base_url=served.v1, api_key="none", max_retries=0) as client:
        patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
        told = [{"role": "user", "content": BOAT}]
        patched.create(model=served.model, messages=told, response_model=Refused, max_retries=3, max_tokens=200)
    assert len(seen) == 2


def test_a_partial_object(served: Served) -> None:
    with openai.OpenAI(base_url=served.v1, api_key="none", max_retries=0) as client:
        patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
        told = [{"role": "user", "content": BOAT}]
        found = list(patched.create_partial(model=served.model, messages=told, response_model=Boat, max_tokens=200))
    assert found[-1].kind and found[-1].length is not None

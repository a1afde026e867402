"""Bodies meant to break a server: each is answered, none with a 5xx, and afterwards all is as before.

`TEST_EXAMPLES` says how many are tried; see test_schema.py.
"""

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "30"))
JSON = {"content-type": "application/json"}
SHORT: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "seed": 1, "temperature": 1.0}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": SHORT | {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": SHORT | {"prompt": "hi"},
    "/v1/responses": {"model": "tiny", "max_output_tokens": 2, "input": [{"role": "user", "content": "hi"}]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [70, 80]},
}
FIELDS = sorted({name for body in BODIES.values() for name in body} | {
    "stop", "n", "logit_bias", "stream", "stream_options", "tools", "response_format", "text", "metadata", "user",
    "top_p", "top_k", "min_p", "stop_token_ids", "speculation", "echo", "logprobs", "min_tokens", "instructions",
})  # fmt: skip


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


def as_json(value: Any) -> str:
    return json.dumps(value)


values = st.one_of(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ).map(as_json),
    st.sampled_from(
        [
            "NaN",
            "-Infinity",
            "1e999",
            "-0",
            "9" * 4000,
            "9" * 5000,
            "1" + "0" * 30,
            '"\\ud800"',
            '"\\u0000"',
            "1.0",
            "[]",
        ]
    ),
    st.integers(1, 3000).map(lambda depth: nested(depth, "[", "]")),
    st.integers(1, 3000).map(lambda depth: nested(depth, '{"a":', "}")),
    st.integers(1, 200_000).map(lambda length: as_json("x" * length)),
)


@st.composite
def fields(draw: st.DrawFn, path: str) -> bytes:
    """A body with hostile values in the place of some fields, or beside them."""
    body = {name: as_json(value) for name, value in BODIES[path].items()}
    for name in draw(st.lists(st.sampled_from(FIELDS) | st.text(max_size=5), min_size=1, max_size=3)):
        body[name] = draw(values)
    return ("{" + ",".join(f"{as_json(name)}:{value}" for name, value in body.items()) + "}").encode()


@st.composite
def broken(draw: st.DrawFn, path: str) -> bytes:
    """A body cut short, with bytes put in, in another encoding, or no JSON at all."""
    body = as_json(BODIES[path]).encode()
    cut = draw(st.integers(0, len(body)))
    inserted = draw(st.binary(max_size=8))
    return draw(
        st.sampled_from(
            [
                body[:cut],
                body[:cut] + inserted + body[cut:],
                body.decode().encode("utf-16"),
                b"\xef\xbb\xbf" + body,
                inserted,
                body * 2,
                nested(100_000, "[", "]").encode(),
            ]
        )
    )


content_types = st.sampled_from(
    [JSON["content-type"]] * 6 + ["text/plain", "application/x-www-form-urlencoded", "a", ""]
)


@pytest.mark.parametrize("path", BODIES)
def test_hostile_bodies_are_answered_and_leave_nothing(base_url: str, path: str) -> None:
    with httpx.Client(base_url=base_url, timeout=300) as client:
        usual = client.post("/v1/completions", json=BODIES["/v1/completions"]).json()["choices"]

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(fields(path) | broken(path), content_types)
        def run(body: bytes, content_type: str) -> None:
            response = client.post(path, content=body, headers={"content-type": content_type})
            assert response.status_code in (200, 400, 404, 413), response.text
            if response.status_code != 200:
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["message"] and len(error["message"]) < 2000

        run()
        assert client.post("/v1/completions", json=BODIES["/v1/completions"]).json()["choices"] == usual
        assert client.get("/ready").json() == {"status": "ready"}

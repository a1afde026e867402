"""Requests made from this server's own OpenAPI document, valid and not: each is answered as the document says.

`TEST_EXAMPLES=1000 .venv/bin/pytest tests/api/schema/test_openapi.py tests/api/http/test_hostile.py` looks longer, and
`PYTHONPATH=. .venv/bin/python tests/fuzz.py --minutes 60` for an hour.
"""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "10"))
THOROUGHLY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/version"),
    ("GET", "/now"),
    ("GET", "/map"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]


LENGTHS = {
    "/v1/chat/completions": {"max_tokens": 8},
    "/v1/responses": {"max_output_tokens": 8},
}
BOTH = list(schemathesis.GenerationMode)
MODES = [(method, path, mode) for method, path in OPERATIONS for mode in BOTH[: 2 if method == "POST" else 1]]
"""Nothing can be wrong with a request that has no body."""


@pytest.fixture(scope="session")
def own_schema(base_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{base_url}/openapi.json")


def test_each_operation_is_tried(own_schema: schemathesis.BaseSchema) -> None:
    documented = own_schema.raw_schema["paths"]
    assert {(method.upper(), path) for path in documented for method in documented[path]} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path", "mode"), MODES)
def test_requests_are_answered_as_documented(
    own_schema: schemathesis.BaseSchema, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    operation = own_schema[path][method]

    @THOROUGHLY
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case[Any]) -> None:
        # With a made-up model every request would end at its name, and most answers would fill the context.
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body = LENGTHS.get(path, {}) | case.body | {"model": "tiny"}
        # Rules between fields, as `top_logprobs` without `logprobs`, are none that a schema can express.
        case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=300)

    run()

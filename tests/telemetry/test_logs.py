"""The log: a client cannot write lines of its own, and lines can be JSON."""

import json
import logging
from collections.abc import Iterator

import pytest

from server.telemetry.logs import JsonFormatter, TextFormatter

FORGED = "no\n2026-01-01 INFO server forged\r\x1b[31m\u2028\x85"


def record(message: str, *arguments: object, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    made = logging.LogRecord("server", logging.INFO, "here", 1, message, arguments, exc_info)
    vars(made).update(extra)
    return made


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def formatter(request: pytest.FixtureRequest) -> Iterator[logging.Formatter]:
    yield request.param()


def test_what_a_client_sends_stays_in_its_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record("path=%s", FORGED))
    assert len(line.splitlines()) == 1
    assert "forged" in line and "\x1b" not in line


def test_text_is_readable_and_keeps_tracebacks() -> None:
    lines = TextFormatter().format(record("größer 漢字", error=ValueError("broken"))).splitlines()
    assert lines[0].endswith("INFO server größer 漢字")
    assert lines[-1] == "ValueError: broken"


def test_json_has_the_fields_and_the_traceback() -> None:
    known = record("status=200", error=ValueError("broken"), fields={"status": 200, "path": "/x"})
    line = json.loads(JsonFormatter().format(known))
    assert (line["level"], line["logger"], line["message"]) == ("info", "server", "status=200")
    assert (line["status"], line["path"]) == (200, "/x")
    assert line["exception"] == "ValueError: broken"
    assert line["time"].endswith("Z") and "T" in line["time"]

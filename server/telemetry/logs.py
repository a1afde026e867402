"""The log: one line for each record, whatever a client has put into it; as text or as JSON.

Fields that a record carries (`extra={"fields": {...}}`) are members of the JSON object.
"""

import json
import logging
import time
from typing import Literal

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def escaped(text: str) -> str:
    """The text with control characters, line ends of any alphabet among them, as escapes: a line stays one."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class TextFormatter(logging.Formatter):
    """A line of text; a traceback, which no client writes, follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A JSON object with time (UTC), level, logger, message, the record's fields, and `exception` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(level: str, kind: LogFormat) -> None:
    """Sends records of at least this level to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What uvicorn says of its own start and stop is said here in words of this server.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

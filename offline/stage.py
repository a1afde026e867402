"""What the stages leave in the work folder: typed records that know from what they were made.

A record carries the digest of its inputs (model, prompts, settings, the record before it). It is
reused where that digest is the same, and made again where it is not.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger("offline")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRecord(Strict):
    """What one stage found; `digest` is that of its inputs."""

    digest: str


R = TypeVar("R", bound=StageRecord)


def digest_of(*parts: object) -> str:
    """A short digest of plain values, in order."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def read_record(path: Path, kind: type[R], digest: str) -> R | None:
    """The finished record at `path`, or None where there is none of these inputs."""
    try:
        record = kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.digest == digest else None


def write_atomically(path: Path, content: bytes) -> None:
    """An interrupted write leaves the old file or none, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def reused_or_made(path: Path, kind: type[R], digest: str, make: Callable[[], R]) -> R:
    """The stage's record: read where it is finished, otherwise made and written."""
    record = read_record(path, kind, digest)
    if record is not None:
        log.info("%s: finished before, reused", path.stem)
        return record
    log.info("%s: started", path.stem)
    record = make()
    write_atomically(path, record.model_dump_json().encode())
    return record

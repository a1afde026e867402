"""What the stages leave in the work folder: typed records that know from what they were made.

A record carries the digest of its inputs (model, prompts, settings, the record before it). It is
reused where that digest is the same, and made again where it is not.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

WORK = "work"
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "bayesian-optimization", "hnswlib")
"""Packages that results may depend on, by their names in a package index."""
log = logging.getLogger("offline")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRecord(Strict):
    """What one stage found; `digest` is that of its inputs, `seconds` what making it took."""

    digest: str
    seconds: float = 0.0


R = TypeVar("R", bound=StageRecord)


def digest_of(*parts: object) -> str:
    """A short digest of plain values, in order."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """The installed version of each of `PACKAGES`, to be kept beside results."""
    return {name: version(name) for name in PACKAGES}


def folder_name(domain: str) -> str:
    """A name for a domain's folder that every file system takes: its plain letters, and a digest of all of it."""
    letters = re.sub(r"[^a-z0-9]+", "-", domain.lower())[:40].strip("-")
    return f"{letters or 'domain'}-{digest_of(domain)[:6]}"


def label(path: Path) -> str:
    """What the log calls a record: its name, after that of its folder inside the work folder."""
    return path.stem if path.parent.name == WORK else f"{path.parent.name}/{path.stem}"


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
    """The stage's record: read where it is finished, otherwise made and written.

    `seconds` are those of the run that finished it.
    """
    record = read_record(path, kind, digest)
    if record is not None:
        log.info("%s: finished before, reused", label(path))
        return record
    log.info("%s: started", label(path))
    started = time.perf_counter()
    record = make()
    record = record.model_copy(update={"seconds": round(time.perf_counter() - started, 2)})
    write_atomically(path, record.model_dump_json().encode())
    return record

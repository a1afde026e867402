"""The typed records that stages leave in the work folder; each knows from which inputs it was made.

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
"""The folder inside `--out` in which the stages keep their records."""
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "bayesian-optimization", "hnswlib")
"""The packages whose versions results may depend on."""
log = logging.getLogger("offline")


class Strict(BaseModel):
    """A record that cannot be changed and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRecord(Strict):
    """The result of one stage: `digest` is the digest of its inputs, `seconds` is the time that making it took."""

    digest: str
    seconds: float = 0.0


R = TypeVar("R", bound=StageRecord)


def digest_of(*parts: object) -> str:
    """A digest of plain values in their order: 32 hexadecimal digits of SHA-256."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """The installed version of each of `PACKAGES`, to be kept beside results."""
    return {name: version(name) for name in PACKAGES}


def folder_name(domain: str) -> str:
    """A name for a domain's folder that every file system takes.

    It is the domain's plain letters and a digest of the whole name, as `c-code-` and six digits for `C++ code`.
    """
    letters = re.sub(r"[^a-z0-9]+", "-", domain.lower())[:40].strip("-")
    return f"{letters or 'domain'}-{digest_of(domain)[:6]}"


def label(path: Path) -> str:
    """The name of a record in the log: `anchors` for work/anchors.json, `sql-12ab34/texts` for one of a domain."""
    return path.stem if path.parent.name == WORK else f"{path.parent.name}/{path.stem}"


def read_record(path: Path, kind: type[R], digest: str) -> R | None:
    """The finished record at `path`; None where it is missing, broken, or made from other inputs."""
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
    """A stage's record: it is read where it was finished with the same inputs, otherwise made and written.

    Its `seconds` are those of the run that finished it, without what interrupted runs before it took.
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

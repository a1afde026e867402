"""Finds a model's files: a folder or a GGUF file here, or one of the hub's, downloaded where it is not there yet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from server.engine.model.gguf.file import PART, part_names
from server.engine.model.weights import CheckpointError

HUB_FILE = re.compile(r"(?P<repository>[^/:]+/[^/:]+):(?P<file>[^:]+\.gguf)")
FOLDER_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py"]
SNAPSHOT = re.compile(r"/snapshots/(?P<commit>[0-9a-f]{40})(?:/|$)")
"""Where the hub's cache keeps the files of one commit."""


def local_model(name: str, revision: str | None = None) -> Path:
    """The folder or GGUF file that `name` stands for; raises `CheckpointError` where there is none.

    All of a hub model's files are of one commit: that which `revision` names, its newest one without.

    A name is a folder, a `.gguf` file, a folder that holds one such model and no `config.json`, a hub name, or a file
    in a hub repository, `ORG/REPO:FILE.gguf`.
    """
    path = Path(name)
    if path.exists() and revision is not None:
        raise CheckpointError(f"{name!r} is here, and only models of the hub have revisions; leave out --revision")
    if path.is_dir():
        return path if (path / "config.json").exists() else gguf_in(path)
    if path.is_file():
        return path
    if match := HUB_FILE.fullmatch(name):
        return hub_file(match["repository"], match["file"], revision)
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf"):
        kind = "file" if name.endswith(".gguf") else "folder"
        raise CheckpointError(f"there is no model {kind} {name!r}")
    with downloading(name, "neither a folder here nor a model that can be downloaded"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=FOLDER_FILES))


def commit_of(path: Path) -> str | None:
    """The commit that a hub model's files are of; None for those of other places."""
    match = SNAPSHOT.search(path.as_posix())
    return match["commit"] if match else None


def gguf_in(folder: Path) -> Path:
    """The folder's GGUF model, or the folder itself where there is none."""
    parts: dict[str, Path] = {}
    for path in sorted(folder.glob("*.gguf")):
        match = PART.fullmatch(path.name)
        parts.setdefault(match["stem"] if match else path.stem, path)
    if len(parts) > 1:
        names = ", ".join(path.name for path in parts.values())
        raise CheckpointError(f"{folder} holds {len(parts)} GGUF models, {names}; name one of these files")
    return next(iter(parts.values()), folder)


def hub_file(repository: str, name: str, revision: str | None) -> Path:
    """A GGUF file of a hub repository with all its parts, in the local hub cache."""
    folder, _, file = name.rpartition("/")
    with downloading(f"{repository}:{name}", "no file here, and cannot be downloaded"):
        first, *others = (f"{folder}/{part}".lstrip("/") for part in part_names(file))
        path = Path(hf_hub_download(repository, first, revision=revision))
        for part in others:
            hf_hub_download(repository, part, revision=commit_of(path) or revision)
    return path


@contextmanager
def downloading(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{name!r} is {what}: {reason}") from error

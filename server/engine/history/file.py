"""Counts of answers in a file, so that a restart forgets nothing of what everyone may draft from."""

import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from server.engine.history.counts import ENTRY_BYTES, Counts, tokens_of

FORMAT = "knnssd-history/1"
ENTRIES = "entries"


class HistoryError(ValueError):
    """A file of counts that cannot be used, in one sentence."""


def save_counts(counts: Counts, path: Path, fingerprint: str) -> None:
    """Writes them for the model of this fingerprint; an interrupted write leaves the old file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(save({ENTRIES: counts.entries()}, {"format": FORMAT, "model": fingerprint}))
    os.replace(part, path)


def load_counts(counts: Counts, path: Path, fingerprint: str, vocabulary_size: int) -> None:
    """Takes in what was written; raises `HistoryError` for another model's file, or one that makes no sense."""
    advice = "name another file, or remove it to begin anew"
    try:
        with safe_open(path, "pt") as file:
            metadata, entries = file.metadata() or {}, file.get_tensor(ENTRIES)
    except Exception as error:
        raise HistoryError(f"--history-file {path} cannot be read: {error}; {advice}") from error
    if metadata.get("format") != FORMAT or metadata.get("model") != fingerprint:
        raise HistoryError(f"--history-file {path} is of another model or version; {advice}")
    is_sound = entries.element_size() == 1 and entries.shape[1:] == (ENTRY_BYTES,)
    if not is_sound or (len(entries) and int(tokens_of(entries).max()) >= vocabulary_size):
        raise HistoryError(f"--history-file {path} holds no counts of this model's tokens; {advice}")
    counts.load(entries)

"""Counts that outlive the process: written whole, read by the model they are of, and by no other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from server.engine import HistoryError, load_counts, save_counts
from server.engine.history.counts import Counts, library
from server.engine.history.history import History

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")

ANSWER = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def learned() -> History:
    history = History(1 << 16, {})
    for _ in range(3):
        history.add("none", None, ANSWER, 2)
    return history


def test_what_was_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "counts"
    save_counts(learned().past, path, "model")
    again = History(1 << 16, {})
    assert again.text("none", None, 20).continuation(ANSWER[:5], 4, 0.0).ids == []
    load_counts(again.past, path, "model", 50)
    assert again.text("none", None, 20).continuation(ANSWER[:5], 4, 0.0).ids == ANSWER[5:9]
    assert [each.name for each in path.parent.iterdir()] == ["counts"]


@pytest.mark.parametrize("is_empty", [True, False])
def test_it_is_written_again_and_again(is_empty: bool, tmp_path: Path) -> None:
    history = History(1 << 16, {}) if is_empty else learned()
    for _ in range(2):
        save_counts(history.past, tmp_path / "counts", "model")
        load_counts(Counts(64), tmp_path / "counts", "model", 50)


def test_another_models_counts_are_refused(tmp_path: Path) -> None:
    save_counts(learned().past, tmp_path / "counts", "model")
    with pytest.raises(HistoryError, match="of another model or version; name another file"):
        load_counts(Counts(64), tmp_path / "counts", "other", 50)
    with pytest.raises(HistoryError, match="no counts of this model's tokens"):
        load_counts(Counts(64), tmp_path / "counts", "model", 12)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    path.write_bytes(b"nonsense")
    with pytest.raises(HistoryError, match="cannot be read"):
        load_counts(Counts(64), path, "model", 50)
    save_file({"other": torch.zeros(2)}, path)
    with pytest.raises(HistoryError, match="cannot be read"):
        load_counts(Counts(64), path, "model", 50)
    save_file({"entries": torch.zeros(2, 7, dtype=torch.uint8)}, path, {"format": "knnssd-history/1", "model": "model"})
    with pytest.raises(HistoryError, match="no counts"):
        load_counts(Counts(64), path, "model", 50)

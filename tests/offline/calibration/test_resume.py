"""A calibration that is killed goes on where it was; a new domain leaves the others' work as it is."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offline.__main__ import main
from offline.records import log

ROOT = Path(__file__).parents[3]
OPTIONS = "--budget 30 --continuation-tokens 24 --search-prompts 4 --heldout-prompts 4 --measure-prompts 2 --seed 3"
KILLED_AFTER = (
    "work/*/collect.json",
    "work/*/texts.json",
    "work/*/vocabulary.json",
    "work/one-*/patch.json",
    "work/one-*/trials-own.jsonl",
    "work/search.json",
)
"""What is on disk when the process is killed: in the stage after it, or in the search itself."""
FURTHER_SECONDS = 120
LETTERS = {"one": "0123456789", "two": "abcdefghij", "three": "uvwxyz"}


def prompts_of(domains: list[str]) -> str:
    chance = {name: random.Random(name) for name in domains}
    prompts = [
        {"prompt": " ".join("".join(chance[name].choices(LETTERS[name], k=5)) for _ in range(5)), "domain": name}
        for name in domains
        for _ in range(12)
    ]
    return "\n".join(map(json.dumps, prompts))


def arguments(model: Path, prompts: Path, out: Path) -> list[str]:
    return ["calibrate", "--model", str(model), "--prompts", str(prompts), "--out", str(out), *OPTIONS.split()]


def without_times(path: Path) -> bytes:
    """A file's bytes with every time blanked: seconds, the date, and measured speeds."""
    if path.suffix == ".safetensors":
        return path.read_bytes()
    return re.sub(rb'"(seconds|created|measured_speedup)": ?[^,}]+', rb'"\1":0', path.read_bytes())


def killed_at(command: list[str], out: Path, pattern: str) -> int:
    """Starts the command, kills it once a file like `pattern` is there, and returns its exit status."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "offline", *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + FURTHER_SECONDS
    while process.poll() is None and not list(out.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_artifact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts, whole, cut = tmp_path / "prompts.jsonl", tmp_path / "whole", tmp_path / "cut"
    prompts.write_text(prompts_of(["one", "two"]))
    assert main(arguments(tiny_checkpoint, prompts, whole)) == 0
    # Times of passes are measured, so both runs work with the same ones.
    (cut / "work").mkdir(parents=True)
    shutil.copy(whole / "work" / "cost.json", cut / "work")
    for pattern in KILLED_AFTER:
        assert killed_at(arguments(tiny_checkpoint, prompts, cut), cut, pattern) == -signal.SIGKILL, pattern
        assert not (cut / "manifest.json").exists()
    assert killed_at(arguments(tiny_checkpoint, prompts, cut), cut, "manifest.json") == -signal.SIGKILL
    assert not (cut / "report.html").exists()
    assert main(arguments(tiny_checkpoint, prompts, cut)) == 0
    made = sorted(
        path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")
    )
    assert len(made) > 15
    for name in made:
        if name.name != "measured.json":
            assert without_times(cut / name) == without_times(whole / name), name


def test_a_new_domain_leaves_the_work_of_the_others(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", log.name)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text(prompts_of(["one", "two"]))
    assert main(arguments(tiny_checkpoint, prompts, out)) == 0
    before = {path: path.read_bytes() for path in out.glob("work/[ot]*/*")}
    caplog.clear()
    further = tmp_path / "further.jsonl"
    further.write_text(prompts_of(["three"]))
    assert main([*arguments(tiny_checkpoint, prompts, out), "--prompts", str(further)]) == 0
    started = {record.getMessage() for record in caplog.records if record.getMessage().endswith(": started")}
    assert {re.sub("-[0-9a-f]{6}/", "/", name.removesuffix(": started")) for name in started} == {
        *("three/collect", "three/texts", "three/vocabulary", "three/patch", "three/drafts"),
        *("anchors", "mixed/patch", "mixed/drafts", "search", "measured"),
    }
    assert before and all(path.read_bytes() == content for path, content in before.items())
    manifest = json.loads((out / "manifest.json").read_text())
    assert [domain["name"] for domain in manifest["domains"]] == ["one", "two", "three"]

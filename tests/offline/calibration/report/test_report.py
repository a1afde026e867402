"""The report: one page that needs nothing else, with every picture; and what `study` adds to it."""

import base64
import json
import random
import re
from pathlib import Path

import pytest

from offline.__main__ import main
from offline.calibration.report.template import CAPTIONS
from offline.study.score_check import spearman
from offline.study.study import Study

FAST = "--budget 4 --continuation-tokens 12 --search-prompts 3 --heldout-prompts 3 --measure-prompts 1"
STUDY = "--masks 5 --seeds 1 --repeats 1"
FURTHER = {"correlation", "strategies", "rival"}
IMAGE = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)">')


@pytest.fixture(scope="module")
def calibration(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a finished calibration; its artifact is the last."""
    folder, chance = tmp_path_factory.mktemp("report"), random.Random(0)
    prompts = [
        {"prompt": "".join(chance.choices(letters, k=30)), "domain": name}
        for name, letters in {"digits": "0123456789", "letters": "abcdefg"}.items()
        for _ in range(10)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    options = ["--model", str(tiny_checkpoint), "--prompts", str(folder / "prompts.jsonl"), *FAST.split()]
    options += ["--out", str(folder / "out")]
    assert main(["calibrate", *options]) == 0
    return options


def pictures(out: Path) -> dict[str, bytes]:
    """The pictures inside the page by their titles."""
    page = (out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page loads nothing"
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL), "no placeholder is left"
    return {title: base64.b64decode(data) for title, data in IMAGE.findall(page)}


def files(out: Path) -> dict[str, bytes]:
    return {CAPTIONS[path.stem][0]: path.read_bytes() for path in (out / "report").glob("*.png")}


def test_the_page_holds_every_picture_and_the_table(calibration: list[str]) -> None:
    out = Path(calibration[-1])
    shown = pictures(out)
    assert shown == files(out)
    assert set(shown) == {title for name, (title, _) in CAPTIONS.items() if name not in FURTHER}
    assert all(png.startswith(b"\x89PNG") and len(png) > 5000 for png in shown.values())
    page = (out / "report.html").read_text()
    for word in ("digits", "letters", "mixed", "false reject", "false accept"):
        assert word in page


def test_a_study_prints_json_and_adds_its_pictures(calibration: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = calibration[-1]
    assert main(["study", *calibration, *STUDY.split(), "--rival", out]) == 0
    found = Study.model_validate_json(capsys.readouterr().out.strip().split("\n")[-1])
    assert set(found.rival) == {"digits", "letters", "mean"}
    assert all(interval.median > 0 for interval in found.rival.values())
    assert set(found.gains) == {"random", "greedy", "evolution", "bayesian"}
    assert all(gain["gain"] >= 1 for gain in found.gains.values())
    shown = pictures(Path(out))
    assert set(shown) == {title for title, _ in CAPTIONS.values()}


def test_a_rival_without_the_domains_is_refused(
    calibration: list[str], tiny_artifact_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *calibration, *STUDY.split(), "--rival", str(tiny_artifact_folder)]) == 2
    assert "--rival: " in capsys.readouterr().err


def test_a_rank_correlation_needs_ranks() -> None:
    assert spearman([(1, 2), (2, 3), (3, 5)]) == pytest.approx(1.0)
    assert spearman([(1, 5), (2, 3), (3, 2)]) == pytest.approx(-1.0)
    assert spearman([(1, 1), (1, 2), (1, 3)]) == spearman([(1, 1)]) == spearman([]) == 0.0

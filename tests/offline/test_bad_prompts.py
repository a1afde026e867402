"""Prompts that cannot be used: one clear line each, and earlier work stays as it was."""

import json
from pathlib import Path

import pytest

from offline.__main__ import main
from offline.records import log
from server.engine import RoutingArtifact

FAST = "--budget 2 --continuation-tokens 8 --search-prompts 2 --heldout-prompts 2 --measure-prompts 0 --no-controls"
ODD_NAMES = ["日本 $x$ <b>&'\"", "../../etc", "a" * 64]


def line(prompt: str, domain: str | None = None) -> str:
    return json.dumps({"prompt": prompt} | ({"domain": domain} if domain else {}))


def lines(count: int, domain: str | None = None, length: int = 4) -> list[str]:
    return [line(f"{i} " + "word " * length, domain) for i in range(count)]


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", log.name)
    return caplog


def calibrate(model: Path, prompts: Path, out: Path) -> int:
    return main(["calibrate", "--model", str(model), "--prompts", str(prompts), "--out", str(out), *FAST.split()])


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of one domain, made of the fewest prompts that are enough."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "three.jsonl").write_text("\n".join(lines(3, "small")))
    assert calibrate(tiny_checkpoint, folder / "three.jsonl", folder / "out") == 0
    return folder / "out"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "holds no prompts"),
        (["", "  "], "holds no prompts"),
        (lines(3, "a")[:2], "domain 'a' has 2 usable prompts, at least 3 are needed"),
        ([*lines(6, "a"), line("alone", "b")], "domain 'b' has 1 usable prompts, at least 3"),
        (lines(2, "a") * 5, "domain 'a' has 2 usable prompts"),
        (lines(2), "domain 'general' has 2 usable prompts"),
        (lines(5, "a", length=300), "no prompt is within 248 tokens"),
        ([*lines(5, "a"), *lines(5, "b", length=300)], "domain 'b' has 0 usable prompts"),
        ([*lines(3, "a"), '{"prompt": "cut o'], ":4: not JSON"),
        ([*lines(3, "a"), "[1]"], ":4: must be a JSON object"),
        ([*lines(3, "a"), '{"text": "x"}'], ":4: needs either `prompt` or `messages`"),
        ([*lines(3, "a"), line("x")], ":4: give a `domain` on every line or on none"),
        ([line("x", "two\nlines")], ":1: `domain` must be of printable characters"),
        (['{"prompt": "x", "domain": "\\ud800"}'], ":1: `domain` must be of printable characters"),
        (['{"prompt": "half \\udc00"}'], ":1: a message holds half a surrogate pair"),
        ([line("x", "mixed")], ":1: `domain` cannot be 'mixed'"),
    ],
)
def test_unusable_prompts_are_one_line_and_change_nothing(
    content: list[str],
    reason: str,
    tiny_checkpoint: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(finished)
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(content))
    assert calibrate(tiny_checkpoint, path, finished) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("knn-ssd-offline: ") and error.count("\n") == 1
    assert contents(finished) == before


def test_three_prompts_of_one_domain_are_enough(finished: Path) -> None:
    manifest = RoutingArtifact.load(finished).manifest
    assert [domain.name for domain in manifest.domains] == ["small"]
    assert manifest.false_accept_rate is None
    assert (finished / "report.html").exists()


def test_repeated_and_long_prompts_are_dropped_and_counted(
    tiny_checkpoint: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*lines(4, "a") * 2, *lines(2, "a", length=300)]))
    arguments = ["--model", str(tiny_checkpoint), "--prompts", str(path), "--out", str(tmp_path / "out")]
    assert main(["collect", *arguments]) == 0
    assert "4 repeated prompts dropped" in messages.text
    assert "2 prompts of more than 192 tokens dropped" in messages.text


def test_domain_names_may_be_odd(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "inner" / "out"
    path.write_text("\n".join(text for i, name in enumerate(ODD_NAMES) for text in lines(3 + i, name, length=4 + i)))
    assert calibrate(tiny_checkpoint, path, out) == 0
    assert [domain.name for domain in RoutingArtifact.load(out).manifest.domains] == ODD_NAMES
    assert sorted(tmp_path.iterdir()) == [tmp_path / "inner", path], "no name leads out of the folder"
    assert len(list((out / "work").glob("*/drafts.json"))) == len(ODD_NAMES) + 1
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page

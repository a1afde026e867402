"""The load client, its probes and its soak, against live servers of a tiny model: what is sent, counted and said."""

import importlib
import json
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.app import AppConfig
from server.engine import Checkpoint
from tests.api.live import make_worker, serve
from tests.docker.files import DOCKER


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts, which find each other as where they are run."""
    names = ("stream", "sweep", "probes", "soak")
    monkeypatch.syspath_prepend(DOCKER / "loadgen")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_lengths_follow_the_law_that_is_written_down(tools: dict[str, ModuleType]) -> None:
    drawn = tools["sweep"].jobs(20_000, 0, 1.0, 10**9)
    for lengths, mean, sigma in (
        ([job.num_words for job in drawn], 161, 1.2),
        ([job.max_tokens for job in drawn], 338, 0.9),
    ):
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.05)
        assert statistics.median(lengths) == pytest.approx(mean * math.exp(-(sigma**2) / 2), rel=0.05)
    assert max(job.num_words for job in tools["sweep"].jobs(1000, 0, 1.0, 300)) == 300
    assert tools["sweep"].jobs(9, 5, 0.5, 100) == tools["sweep"].jobs(9, 5, 0.5, 100)


def test_a_sweep_over_two_servers(
    tools: dict[str, ModuleType], checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("secret\n")
    options = f"--clients 1,3 --answers 2 --scale 0.02 --longest 10 --ignore-eos --api-key-file {tmp_path / 'key'}"
    config = AppConfig(api_keys=("secret",))
    with (
        serve(make_worker(checkpoint, None)[0], config) as url,
        serve(make_worker(checkpoint, None)[0], config) as other,
    ):
        tools["sweep"].main(["--url", f"{url}/v1", "--against", f"{other}/v1", *options.split()])
    found = lines(capsys)
    assert [(line["server"], line["clients"]) for line in found] == [
        (f"{each}/v1", number) for number in (1, 3) for each in (url, other)
    ]
    for line in found:
        assert (line["answers"], line["failures"], line["model"]) == (2 * line["clients"], 0, "tiny")
        assert line["tokens"] > line["answers"] and line["tokens_per_second"] > 0
        assert 0 < line["first_token"]["p50"] <= line["first_token"]["max"]
    assert [line["tokens"] for line in found[::2]] == [line["tokens"] for line in found[1::2]], "the same requests"


def test_what_is_not_answered_is_said_and_counted(
    tools: dict[str, ModuleType], checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tools["sweep"].main(["--url", "http://127.0.0.1:1/v1"])
    assert "no models at http://127.0.0.1:1/v1" in capsys.readouterr().err
    with serve(make_worker(checkpoint, None)[0]) as url:
        tools["sweep"].main(["--url", f"{url}/v1", "--clients", "1", "--answers", "1", "--method", "skip"])
    refused, line = capsys.readouterr().out.splitlines()
    assert "answers 400" in refused and "needs a routing artifact" in refused
    assert (json.loads(line)["failures"], json.loads(line)["first_token"]) == (1, {})


def test_the_probes(
    tools: dict[str, ModuleType],
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths that the tiny model holds, whose tokens are letters."""
    real = tools["probes"].ask
    monkeypatch.setattr(tools["probes"], "ask", lambda server, prompt, most: real(server, prompt[:60], min(most, 190)))
    monkeypatch.setattr(tools["probes"], "SOON", 0.0)
    monkeypatch.setattr(tools["probes"], "LATER", 0.0)
    with serve(make_worker(checkpoint, None, max_batch=8)[0]) as url:
        tools["probes"].main(["--url", f"{url}/v1", "--repeats", "1", "--method", "plain"])
    behind, beside, together = lines(capsys)
    assert behind["probe"] == "behind" and min(behind["alone"], behind["first"], behind["long"]) > 0
    assert beside["usual"] >= 0 and beside["first"] > 0
    assert together["ratio"] == pytest.approx(together["eight"] / together["alone"], rel=1e-2)


@pytest.fixture
def soak(tools: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With prompts that the tiny model holds, whose tokens are letters."""
    monkeypatch.setattr(tools["soak"], "text", lambda num_words, seed: f"{seed} "[: min(num_words, 20)])
    monkeypatch.setattr(tools["soak"], "LONGEST_CHAT", 4)
    return tools["soak"]


def test_a_soak_leaves_nothing_behind(
    soak: ModuleType, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(make_worker(checkpoint, None, max_batch=4)[0]) as url, pytest.raises(SystemExit) as ended:
        soak.main(["--url", f"{url}/v1", "--clients", "6", "--minutes", "0.05"])
    last = lines(capsys)[-1]
    assert ended.value.code == 0 and last["is_clean"]
    assert last["counts"]["answered"] > 0 and not [last[name] for name in soak.HELD if last[name]]


def test_a_soak_fails_where_an_answer_was_lost(
    soak: ModuleType, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(soak.Client, "ask", lose)
    with serve(make_worker(checkpoint, None)[0]) as url, pytest.raises(SystemExit) as ended:
        soak.main(["--url", f"{url}/v1", "--clients", "1", "--minutes", "0.001"])
    last = lines(capsys)[-1]
    assert ended.value.code == 1 and not last["is_clean"]
    assert list(last["counts"]) == ["lost: ConnectionResetError('gone')"]


def test_a_soak_without_a_server_says_so(soak: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        soak.main(["--url", "http://127.0.0.1:1/v1"])
    assert ended.value.code == 1 and "no models at http://127.0.0.1:1/v1" in capsys.readouterr().err

"""The load client, its probes and its soak, against live servers of a tiny model: what is sent, counted and said."""

import importlib
import itertools
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
from tests.docker.files import DOCKER, ROOT


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts, which find each other as where they are run."""
    names = ("stream", "goodput", "sweep", "probes", "soak")
    monkeypatch.syspath_prepend(DOCKER / "loadgen")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def lines(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


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
    printed = capsys.readouterr()
    found = lines(printed.out)
    assert [(line["server"], line["clients"]) for line in found] == [
        (f"{each}/v1", number) for number in (1, 3) for each in (url, other)
    ]
    for line in found:
        assert (line["answers"], line["failures"], line["model"]) == (2 * line["clients"], 0, "tiny")
        assert line["tokens"] > line["answers"] and line["tokens_per_second"] > 0
        assert 0 < line["first_token"]["p50"] <= line["first_token"]["max"]
        assert (line["goodput"]["first"], line["goodput"]["further"]) == (2.0, 0.1)
        assert line["goodput"]["tokens_per_second"] <= line["tokens_per_second"] + 0.1
    assert [line["tokens"] for line in found[::2]] == [line["tokens"] for line in found[1::2]], "the same requests"
    assert printed.err.splitlines()[0] == "within: first token within 2 s, further ones in 100 ms each"
    assert len(printed.err.splitlines()) == 2 + len(found)


def test_goodput_is_of_answers_that_met_both_limits(tools: dict[str, ModuleType]) -> None:
    goodput, answer = tools["goodput"], tools["stream"].Answer
    goal = goodput.Goal(first=1.0, further=0.1)
    answers = [
        answer(5.0, [5.5, 5.9, 6.5], 9, 11),  # 10 further tokens in a second: pieces may have several
        answer(5.0, [6.1, 6.2], 9, 2),
        answer(5.0, [5.1, 6.5], 9, 11),
        answer(5.0, [6.0], 9, 1),  # nothing after the first token
    ]
    assert [goal.is_met(each) for each in answers] == [True, False, False, True]
    found = goodput.goodput(answers, 8.0, goal)
    assert found == {
        "first": 1.0,
        "further": 0.1,
        "answers": 2,
        "answers_per_second": 0.25,
        "tokens_per_second": 1.5,
    }
    assert goodput.goodput([], 8.0, goal)["answers_per_second"] == 0


def test_limits_that_nothing_meets(
    tools: dict[str, ModuleType], checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--clients 1 --answers 2 --scale 0.02 --longest 10 --ignore-eos --goal-first 1e-9 --goal-further 0.25"
    with serve(make_worker(checkpoint, None)[0]) as url:
        tools["sweep"].main(["--url", f"{url}/v1", *options.split()])
    printed = capsys.readouterr()
    (line,) = lines(printed.out)
    assert (line["answers"], line["failures"]) == (2, 0)
    assert line["goodput"] == {
        "first": 1e-9,
        "further": 0.25,
        "answers": 0,
        "answers_per_second": 0,
        "tokens_per_second": 0,
    }
    assert "further ones in 250 ms each" in printed.err


def test_lines_of_before_goodput_are_read(
    tools: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ROOT / "offline" / "results" / "smollm2-load-amx.jsonl"
    line = json.loads(kept.read_text().splitlines()[0])
    good = {"first": 1.0, "further": 0.05, "answers": 2, "answers_per_second": 0.5, "tokens_per_second": 99.0}
    (tmp_path / "new.jsonl").write_text(json.dumps({**line, "goodput": good}) + "\n")
    tools["sweep"].main(["--table", str(kept), str(tmp_path / "new.jsonl")])
    heading, columns, *rows = capsys.readouterr().out.splitlines()
    assert heading == "within: first token within 1 s, further ones in 50 ms each"
    assert columns.split()[:3] == ["server", "clients", "answers"]
    assert rows[0].split()[-3:] == ["-", "-", "-"]
    assert rows[-1].split() == ["knn-ssd-server", "1", "3", "524.8", "0.05", "0.07", "2", "0.50", "99.0"]


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
    real, prompts = tools["probes"].ask, list[Any]()

    def ask(server: Any, prompt: Any, most: int) -> Any:
        prompts.append(prompt if isinstance(prompt, str) else [message["content"] for message in prompt])
        return real(server, prompt[:60], min(most, 190))

    monkeypatch.setattr(tools["probes"], "ask", ask)
    monkeypatch.setattr(tools["probes"], "seeds", itertools.count())
    monkeypatch.setattr(tools["probes"], "TURN_TOKENS", 9)
    monkeypatch.setattr(tools["probes"], "REPLY_TOKENS", 2)
    monkeypatch.setattr(tools["probes"], "SOON", 0.0)
    monkeypatch.setattr(tools["probes"], "LATER", 0.0)
    with serve(make_worker(checkpoint, None, max_batch=8)[0]) as url:
        tools["probes"].main(["--url", f"{url}/v1", "--repeats", "1", "--method", "plain"])
    behind, beside, together, chat = lines(capsys.readouterr().out)
    assert behind["probe"] == "behind" and min(behind["alone"], behind["first"], behind["long"]) > 0
    assert beside["usual"] >= 0 and beside["first"] > 0
    assert together["ratio"] == pytest.approx(together["eight"] / together["alone"], rel=1e-2)
    assert [name for name in chat if name.startswith("turn_")] == [f"turn_{i}" for i in range(1, 11)]
    assert min(chat["turn_1"], chat["turn_10"], chat["again"], chat["added"]) > 0
    *_, before, last, again = prompts
    assert last == again and last[: len(before)] == before, "each prompt goes on where the one before ended"
    assert (len(before), len(last)) == (17, 19)


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
    last = lines(capsys.readouterr().out)[-1]
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
    last = lines(capsys.readouterr().out)[-1]
    assert ended.value.code == 1 and not last["is_clean"]
    assert list(last["counts"]) == ["lost: ConnectionResetError('gone')"]


@pytest.mark.parametrize("name", ["soak", "probes"])
def test_without_a_server_a_tool_says_so(
    tools: dict[str, ModuleType], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        tools[name].main(["--url", "http://127.0.0.1:1/v1"])
    assert ended.value.code == 1 and "no models at http://127.0.0.1:1/v1" in capsys.readouterr().err

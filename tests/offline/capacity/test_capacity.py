"""The simulation of replicas: what can be worked out by hand, and that more load needs more of them."""

import json
from pathlib import Path

import pytest

from offline.__main__ import main
from offline.capacity.simulation import Costs, Simulation, Traffic, Turn, replicas_needed
from server.cluster.affinity import PREFIX_SLACK, within

COSTS = Costs(step_ms=6, row_ms=1.5, read_ms=0.5)
ALONE = Traffic(turns=1, first_tokens=100, answer_tokens=50)


def test_a_lone_request_has_its_first_token_once_it_is_read() -> None:
    result = Simulation(COSTS, ALONE, 1, "load").run(rate=0.001, num_requests=1)
    assert list(result.first) == pytest.approx([(6 + 0.5 * 100) / 1000])
    assert list(result.further) == pytest.approx([(6 + 1.5) / 1000])
    assert result.cached == 0


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (Simulation(COSTS, Traffic(), 2, "load").run(2, 300) for _ in range(2))
    assert first == second and len(first.first) == len(first.further) == 300


def test_more_requests_need_more_replicas() -> None:
    needed = [replicas_needed(COSTS, Traffic(), rate, 2, 0.1, "prefix") for rate in (0.2, 4, 12)]
    assert needed == sorted(needed, key=lambda count: count or 99) and needed[0] == 1 and needed[2] != 1
    assert replicas_needed(COSTS, Traffic(), 50, 2, 0.1, "prefix", most=2) is None
    assert replicas_needed(COSTS, Traffic(), 1, 0.001, 0.1, "prefix", most=2) is None


def test_conversations_that_stay_are_not_read_twice() -> None:
    staying, moving = (Simulation(COSTS, Traffic(), 4, routing).run(2, 600) for routing in ("prefix", "load"))
    assert staying.cached > moving.cached + 0.2
    assert sum(staying.first) < sum(moving.first)


@pytest.mark.parametrize("loads", [[0, 0], [3, 1], [4, 1], [9, 2, 2], [1, 8, 0, 3], [20, 1, 1, 1]])
def test_who_has_a_conversation_keeps_it_as_long_as_in_the_ingress(loads: list[int]) -> None:
    simulation = Simulation(COSTS, Traffic(), len(loads), "prefix")
    for replica, load in zip(simulation.replicas, loads, strict=True):
        replica.running = [Turn(0, 0, 1, 0.0)] * load
    readers = range(len(loads))
    kept = [all(simulation.choose(Turn(0, 1, 1, 0.0, reader)) == reader for _ in range(20)) for reader in readers]
    named = {str(number): load for number, load in enumerate(loads)}
    assert kept == [bool(within(named, [str(reader)], PREFIX_SLACK)) for reader in readers]


def test_the_command_tells_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "capacity.png"
    costs = ["--step-ms", "6", "--row-ms", "1.5", "--read-ms", "0.5"]
    assert main(["capacity", *costs, "--rates", "0.5", "--rates", "4", "--plot", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rates"] == [0.5, 4.0] and set(told["replicas"]) == {"prefix", "load"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["capacity", *costs]) == 2

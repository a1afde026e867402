"""Pictures of an evaluation: bars by domain, or means where there are many methods."""

from pathlib import Path

import pytest

from offline.evaluation import plot
from offline.evaluation.summary import MEAN, Interval, ResultRow


def row(method: str, domain: str, speed: float) -> ResultRow:
    return ResultRow(
        method=method,
        domain=domain,
        prompts=1,
        tokens=9,
        tokens_per_second=9.0,
        speedup=Interval(median=speed, low=speed - 0.1, high=speed + 0.2),
        decode_speedup=None,
        acceptance=None,
        mean_accepted_length=None,
        exact=1.0,
    )


@pytest.mark.parametrize(("count", "drawn"), [(plot.MOST_BESIDE, "draw_domains"), (plot.MOST_BESIDE + 1, "draw_means")])
def test_many_methods_are_drawn_by_their_means(
    count: int, drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["plain", *(f"method {i}" for i in range(count))]
    rows = [row(name, domain, 1 + i / 10) for i, name in enumerate(names) for domain in ("a", "b", MEAN)]
    called = []
    for name in ("draw_domains", "draw_means"):
        real = getattr(plot, name)
        monkeypatch.setattr(plot, name, lambda *args, name=name, real=real: called.append(name) or real(*args))  # type: ignore[func-returns-value]
    plot.draw_speedups(rows, tmp_path / "speed.png")
    assert called == [drawn]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")

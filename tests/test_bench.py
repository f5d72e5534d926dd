"""The benchmark's own reckoning; what it measures is asserted by nobody but `bench.py` itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bench
import pytest
from bench import DIRECT, MUX, Bar, Figure, Run

HERE = Path(__file__).parent


def bar(monkeypatch: pytest.MonkeyPatch, values: list[float], limit: float, **keys: Any) -> tuple[str, str]:
    """What is said of a ratio of these values in as many repetitions."""
    samples = {MUX: dict(enumerate(values, 1)), DIRECT: dict.fromkeys(range(1, len(values) + 1), 1.0)}
    monkeypatch.setitem(bench.FIGURES, "x", Figure("x", "ms", samples))
    return Bar("x", limit, bench.ratio(bench.sample("x", MUX), bench.sample("x", DIRECT)), **keys).verdict()


@pytest.mark.parametrize(
    ("values", "limit", "said"),
    [
        ([1.0, 1.1, 1.2], 1.5, ("1.1", "met")),
        ([1.0, 1.1, 1.2], 1.05, ("1.1", "MISSED")),
        ([1.0, 5.0, 9.0], 10, ("scattered", "met")),  # no number is told, but each repetition speaks for itself
        ([2.0, 5.0, 9.0], 1, ("scattered", "MISSED")),
        ([1.0, 5.0, 9.0], 4, ("scattered", "void")),
        ([], 4, ("", "not measured")),
    ],
)
def test_a_ratio_is_told_only_where_it_means_something(
    monkeypatch: pytest.MonkeyPatch, values: list[float], limit: float, said: tuple[str, str]
) -> None:
    assert bar(monkeypatch, values, limit) == said


def test_repetitions_in_which_the_machine_was_slow_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bar(monkeypatch, [1.0, 50.0, 1.0], 2, void=lambda n: n == 2) == ("1", "met")
    assert bar(monkeypatch, [1.0, 50.0], 2, void=lambda _: True) == ("", "void")


@pytest.mark.parametrize("way", [DIRECT, MUX])
def test_the_driver_gets_every_answer(tmp_path: Path, way: str) -> None:
    """A rate of calls that nobody answered would be a good one."""
    with bench.peer(Run(tmp_path, quick=True), way, servers=1 if way == DIRECT else 2, tools=3) as one:
        assert one.pipelined(60, most=500) > 0
        assert len(one.crowded(0.05)) >= bench.CROWD
        id, line = one.call(size=100_000, shape="deep", progress=10)
        one.send(line)
        answer, others = one.answer(id)
        assert others == 10
        assert 90_000 < len(answer) < 110_000


def test_the_picture_says_how_and_when_it_was_made_and_stands_in_the_readme() -> None:
    picture = (HERE / "bench.svg").read_text(encoding="utf-8")
    assert "uv run --group bench tests/bench.py" in picture
    assert re.search(
        r"20\d\d-\d\d-\d\d, \w+, \d+ cores, Python [\d.]+, mcpmux [\d.]+, fastmcp [\d.]+, mcp [\d.]+", picture
    )
    assert all(f">{title}" in picture for title in bench.PICTURE.values())
    assert "/tests/bench.svg)" in (HERE.parent / "README.md").read_text(encoding="utf-8")


def test_two_runs_are_held_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = Figure("a call", "µs", {MUX: {1: 2.0, 2: 3.0, 3: 4.0}})
    monkeypatch.setattr(bench, "FIGURES", {"call": figure})
    former = {"command": "bench", "machine": "before", "figures": {"call": {"samples": {MUX: [6.0]}}}}
    (tmp_path / "former.json").write_text(json.dumps(former))
    bench.compare(tmp_path / "former.json")
    assert capsys.readouterr().out.splitlines()[1:] == ["a call, mcpmux: 0.5 of what it was"]


def test_the_core_is_measured_alone() -> None:
    assert 0 < bench.core_time(HERE.parent) < 0.01

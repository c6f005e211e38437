"""What calls and loads took, beside the catalogue: what the journals hold, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conductor.__main__ import main
from conductor.journal import read_run
from conductor.measure import Figure, draw_of, is_off, measure
from conductor.orchestrator import begin
from conductor.report import report_run
from conductor.workflow import load_workflow
from fq_env.level import Draw
from tests.conductor.helpers import small_workflow

Write = Callable[[dict[str, Any]], Path]


def test_it_is_what_the_journals_hold(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls and loads of two runs; failed calls are counted and not timed; the catalogue is put beside."""
    content = small_workflow(fa={"kind": "python", "call": "work:fail_once", "seconds": 20})
    content["system"]["functions"]["plain"]["standard"]["seconds"] = 7.0
    content["system"]["quality_flow"] = 0.5
    file = write_workflow(content)
    places = [begin(load_workflow(file), file.parent / "runs", strategy="parallel").folder for _ in range(2)]
    found = {figure.name: figure for figure in measure(places).figures}
    assert [*found] == ["fa.standard", "fb.standard", "plain.standard", "A", "B"]
    for k, place in enumerate(places):
        calls = report_run(place).calls
        for name in ("fa", "fb", "plain"):
            took = [call.run for call in calls if call.function == name and call.result == "ok"]
            assert took and sorted(found[f"{name}.standard"].seconds[k]) == sorted(took)  # in order of ends, and of begins
        events = [row.data for row in read_run(place) if row.kind == "event" and row.data["kind"] == "loaded"]
        both = np.concatenate([found["A"].seconds[k], found["B"].seconds[k]])
        assert sorted(both) == sorted(event["elapsed"] / 1e6 for event in events)
        assert (both >= 0.05).all()  # what the function that loads them sleeps
    assert [figure.failed for figure in found.values()] == [4, 0, 0, 0, 0]
    over = pytest.approx([0.9 / 0.95] * 2)  # `add` tells 0.9, and inputs of 0.9 leave 0.95
    assert [figure.qualities for figure in found.values()] == [[0.9] * 4, over, over, [], []]
    assert [figure.is_misjudged for figure in found.values()] == [True, True, True, False, False]  # the catalogue says 1
    assert is_off(found["plain.standard"], [*found.values()]) and found["plain.standard"].ratio < 0.1
    assert main(["measure", *map(str, places)]) == 0
    out = capsys.readouterr().out
    assert "measured in 2 runs" in out and "load of B" in out and "! is off" in out and "3 runs or more" in out
    assert f"the catalogue is that of {places[-1].name}" in out and "never ended well" not in out
    (row,) = [line for line in out.splitlines() if line.split()[:1] == ["fa.standard"]]
    assert row.split()[1:3] == ["4", "4"] and row.split()[-3:] == ["0.90", "!", "1"]
    twice = measure([places[0], places[1] / "journal.sqlite", places[0]])
    assert repr(twice) == repr(measure(places[::-1])) and twice.runs == 2  # in order of time, each once
    content["system"]["functions"]["other"] = {"standard": {"pool": "cpu", "seconds": 1}}
    other = begin(load_workflow(write_workflow(content)), file.parent / "runs", strategy="parallel").folder
    assert main(["measure", str(other)]) == 0
    assert "nothing is known of: other.standard" in capsys.readouterr().out
    assert main(["measure", str(other), str(places[0])]) == 2
    assert f"{places[0].name} is a run of another system than {other.name}" in capsys.readouterr().err
    assert main(["measure", str(file.parent)]) == 2
    assert "there is no journal" in capsys.readouterr().err


def test_fetching_is_not_the_calls_own_time(write_workflow: Write) -> None:
    """The Pit expects the catalogue's seconds and then the fetching; so what was measured is without it."""
    content = small_workflow()
    content["system"]["store"] = {"hot": 1, "fetch_seconds": {"warm": 0.02}}  # every output is warm
    file = write_workflow(content)
    place = begin(load_workflow(file), file.parent / "runs", strategy="parallel").folder
    found = {figure.name: figure for figure in measure([place]).figures}
    for name, fetch in (("fa", 0.0), ("fb", 0.02), ("plain", 0.02)):  # the first has no inputs
        took = [call.run - fetch for call in report_run(place).calls if call.function == name]
        assert took and found[f"{name}.standard"].seconds[0] == pytest.approx(took)


def figure(name: str, catalogue: float, seconds: list[list[float]], is_model: bool = False, failed: int = 0) -> Figure:
    return Figure(name, catalogue, None if is_model else 1.0, [np.array(run) for run in seconds], [], failed)


def test_what_a_level_should_draw() -> None:
    runs = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    calls, load = figure("f.lite", 1.0, runs, failed=2), figure("m", 1.0, [[2.0], [2.0], [8.0]], True)
    short = figure("g.standard", 1e-4, [[0.001], [0.004], [0.009]])
    assert draw_of([calls, short, load]) == {
        "seconds": [0.55, 1.45],  # 5 and 95 % of 0.5, 1, 1.5
        "load_seconds": [0.5, 1.85],  # of 0.5, 0.5, 2
        "noise_cv": [0.0, 0.0],  # within a run nothing varied; a single load says nothing about it
        "failure_rate": 0.18,  # 2 of 11
    }
    assert draw_of([figure("f.lite", 1.0, runs[:2])]) == {}  # two runs are too few
    noisy = figure("f.lite", 1.0, [[1.0, 3.0], [1.5, 2.5], [2.0, 2.0]])
    cvs = np.percentile([0.0, np.std([1.5, 2.5], ddof=1) / 2, np.std([1.0, 3.0], ddof=1) / 2], (5, 95))
    assert draw_of([noisy])["noise_cv"] == [round(float(cv), 2) for cv in cvs]


def test_a_level_takes_what_is_said() -> None:
    """However strange what was measured: a level's `draw` is not refused."""
    wild = figure("f.lite", 1.0, [[1e-3, *[1e-6] * 9, 5e3], [1e-3, 1e-3], [2e-2] * 9], failed=500)
    loads = figure("m", 1.0, [[1e-6] * 20 + [9e3], [1e-6] * 3, [1.0, 1.0]], True)
    draw = draw_of([wild, loads])
    assert draw.keys() == {"seconds", "load_seconds", "noise_cv", "load_cv", "failure_rate"}
    assert draw["noise_cv"][1] > 1 and draw["failure_rate"] == 0.9  # type: ignore[index]
    Draw.model_validate(draw)


def test_only_what_matters_is_marked() -> None:
    long, right, tiny = figure("f.lite", 1.0, [[4.0]]), figure("g.lite", 1.0, [[1.4]]), figure("h.lite", 0.02, [[0.001]])
    never = figure("i.lite", 1.0, [])
    figures = [long, right, tiny, never]
    assert [is_off(x, figures) for x in figures] == [True, False, False, False]
    assert is_off(tiny, [tiny])  # where all is as short, it does

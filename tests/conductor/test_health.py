"""What the conductor does about calls whose API has changed: configured anew, in workers that begin anew, and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conductor.errors import ConductorError
from conductor.journal import read_journal
from conductor.orchestrator import begin
from conductor.report import RunReport, print_run, report_run
from conductor.run import Observer
from conductor.shapes import STEADY, Shapes
from conductor.workflow import load_workflow

Write = Callable[[dict[str, Any]], Path]


def chain(call: str, tasks: int = 8, model: bool = False, **plan: Any) -> dict[str, Any]:
    """Calls of one function, one after the other; with `model` on a copy."""
    wait = 15.0 if plan.get("configure") == "work:configure" else 0.5
    return {
        "system": {
            "heal": True, "pools": {"cpu": {"places": 1}}, "max_attempts": 12,
            "models": {"A": {"size": 1, "load_seconds": 0.1}} if model else {},
            "functions": {"f": {"standard": {"pool": "cpu", "seconds": 0.1, "model": "A" if model else None}}},
        },
        "tasks": [
            {"id": f"t{i}", "function": "f", "args": {"number": i, "wait": wait}, "after": [f"t{i - 1}"] if i else []}
            for i in range(tasks)
        ],
        "instruments": {
            "models": {"A": {"load": "work:load", "args": {"number": 10}}} if model else {},
            "functions": {"f": {"kind": "python", "call": f"work:{call}", "seconds": 20, **plan}},
        },
    }  # fmt: skip


def run(path: Path, observer: Observer | None = None) -> RunReport:
    return report_run(begin(load_workflow(path), path.parent / "runs", strategy="parallel", observer=observer).folder)


def told(report: RunReport) -> list[str]:
    return [row.data["kind"] for row in read_journal(report.folder) if row.kind == "event" and row.data["applied"]]


@pytest.mark.parametrize("model", [False, True])
def test_a_changed_api_is_configured(write_workflow: Write, model: bool) -> None:
    report = run(write_workflow(chain("changed", model=model, configure="work:configure")))
    assert report.status == "solved" and told(report).count("config_changed") == 1
    assert (Path(report.folder) / "files" / "configured").read_text() == "f.standard\n"
    results = [call.result for call in report.calls]
    assert results[:4] == ["ok", "ok", "invalid", "invalid"] and set(results[-5:]) == {"ok"}
    assert [healing.action for healing in report.healings] == ["config_update"] and report.healings[0].after is not None
    assert report.events["reload"] == model  # its copy was loaded again
    processes = [line.split()[4] for line in (Path(report.folder) / "files" / "effects.log").read_text().splitlines()]
    assert processes[0] == processes[3] != processes[-1]
    console = Console(record=True, width=200)
    print_run(report, console)
    text = console.export_text()
    assert "health of f.standard: recovery since" in text and "config_update of f.standard: " in text


def test_a_configuration_that_fails_is_told_and_tried_again(write_workflow: Write) -> None:
    report = run(write_workflow(chain("changed", configure="work:broken_configure")))
    rows = [row.data for row in read_journal(report.folder) if row.kind == "event" and row.data["kind"] == "config_changed"]
    assert report.status == "failed" and rows and all("no such settings" in row["text"] for row in rows)


def test_without_a_hook_workers_begin_anew(write_workflow: Write) -> None:
    report = run(write_workflow(chain("changed", tasks=3)))
    assert report.status == "failed" and "config_changed" in told(report)


def test_an_output_of_another_shape_is_suspicious(write_workflow: Write) -> None:
    path = write_workflow(chain("reshaped", tasks=9, configure="work:configure"))

    def tell(kind: str, at: int, text: str) -> None:
        if kind == "configured":  # and recorded, before the calls that wait for it can end
            next((path.parent / "runs").glob("*/files")).joinpath("told").touch()

    report = run(path, tell)
    assert report.status == "solved"
    assert [kind for kind in told(report) if kind in ("output_changed", "config_changed")] == [
        "output_changed",
        "config_changed",
    ]


def test_shapes() -> None:
    shapes = Shapes()
    for value in (1, 2.5, 3, 4, 5):
        assert not shapes.changed(0, value)
    assert shapes.changed(0, "five") and not shapes.changed(0, 6)
    for _ in range(STEADY):
        assert not shapes.changed(1, {"a": [1, 2], "b": None})
    assert not shapes.changed(1, {"b": None, "a": [7.5]}) and shapes.changed(1, {"a": ["x"], "b": None})
    assert not shapes.changed(2, {"a": 1}) and not shapes.changed(2, {"b": 1})


def test_a_hook_that_does_not_exist_is_refused(write_workflow: Write) -> None:
    with pytest.raises(ConductorError, match=r"instruments\.functions\.f\.configure"):
        run(write_workflow(chain("changed", configure="work:nothing")))

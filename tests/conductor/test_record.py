"""A run's decisions from its journal: the rows say what the journal says, and more."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conductor.__main__ import main
from conductor.bundle import Bundle
from conductor.errors import ConductorError
from conductor.journal import Row, read_journal
from conductor.orchestrator import begin
from conductor.pit_interface import PitInterface, array_digest, fold
from conductor.record import decisions, record_run
from conductor.report import report_run
from conductor.workflow import load_workflow
from pit import layout, record, state
from tests.conductor.helpers import conductor, small_workflow

Write = Callable[[dict[str, Any]], Path]


def run(file: Path, strategy: str = "parallel", bundle: Bundle | None = None) -> Path:
    return begin(load_workflow(file), file.parent / "runs", strategy=strategy, bundle=bundle).folder


def check_against_journal(folder: Path, rows: list[record.Row]) -> None:
    """Every action with what was seen, every start that was intended, in the journal's order."""
    journal = list(read_journal(folder))
    actions = [row for row in journal if row.kind == "action"]
    assert [(row["time_s"], row["action"], row["by"], row["note"]) for row in rows] == [
        (row.time / 1e6, row.data["action"], row.data["by"], row.data["note"]) for row in actions
    ]
    assert [array_digest(row["observation"]) for row in rows] == [row.data["observation"] for row in actions]
    assert [array_digest(row["mask"]) for row in rows] == [row.data["mask"] for row in actions]
    started = [o for row in rows for o in row["operations"] if o["kind"] == "start"]
    intents = [row.data for row in journal if row.kind == "intent"]
    assert [(o["call"], o["function"], o["variant"]) for o in started] == [
        (i["call"], i["function"], i["variant"]) for i in intents
    ]
    applied = sum(row.kind == "event" and row.data["applied"] for row in journal)
    assert sum(row["events"] for row in rows) == applied - 1  # all but the arrival, which no decision precedes


@pytest.mark.parametrize("strategy", ["adaptive", "parallel", "sequential"])
def test_the_rows_are_the_run(write_workflow: Write, bundle: Bundle, strategy: str) -> None:
    folder = run(write_workflow(small_workflow()), strategy, bundle)
    rows, report = decisions(folder), report_run(folder)
    check_against_journal(folder, rows)
    last = rows[-1]["after"]
    assert (last["status"], last["done"], last["spent"]) == ("solved", 4, pytest.approx(report.spent))
    assert last["score"] == report.score and last["time_s"] == report.makespan
    assert sum(row["loads"] for row in rows) == report.events["loaded"]
    assert [row["after"] for row in rows[:-1]] == [row["before"] for row in rows[1:]]
    assert sum(row["money"] for row in rows) == pytest.approx(report.spent)
    total = sum(row["busy_place_seconds"][0] for row in rows)
    assert sum(call.run for call in report.calls) <= total <= 2 * report.makespan
    for row in rows:
        assert (row["source"], row["run"], row["workflow"], row["player"]) == ("production", folder.name, "small", strategy)
        assert row["reward"] is row["level"] is row["instance"] is None
        assert (row["task"] is None) == (row["action_name"] == "wait")
        assert row["task"] is None or report.run["workflow"]["tasks"][row["task"]]["id"] == row["task_id"]


def test_the_states_are_those_of_the_replay(write_workflow: Write) -> None:
    """The journal folded once more: at each action and at the end, the Pit counts what the row counts."""
    folder = run(write_workflow(small_workflow()))
    told: list[tuple[Any, ...]] = []

    def count(row: Row, view: PitInterface) -> None:
        if row.kind in ("action", "end"):
            hot = np.frombuffer(view.pit.snapshot(), np.uint8)[: state.PIT.itemsize].view(state.PIT)[0]
            done = int((view.pit.tasks()["state"] == layout.DONE).sum())
            spent, status = hot["spent"] / 1e6, layout.STATUSES[view.pit.status]
            told.append((view.pit.now / 1e6, status, done, spent, hot["warnings"], hot["next_call"]))

    fold(read_journal(folder), count)
    rows, names = decisions(folder), ("time_s", "status", "done", "spent", "warnings")
    # The fold is asked after an action, and none of these actions changes more than the calls that it begins.
    assert [tuple(row["before"][name] for name in names) for row in rows] == [entry[:5] for entry in told[:-1]]
    last = rows[-1]["after"]
    calls = sum(o["kind"] == "start" for row in rows for o in row["operations"])
    assert (*(last[name] for name in names), calls) == told[-1]


def test_the_command_writes_the_schema_of_the_game(
    write_workflow: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, out = run(write_workflow(small_workflow())), tmp_path / "decisions.parquet"
    assert main(["record", str(folder), "--out", str(out)]) == 0
    rows = decisions(folder)
    assert capsys.readouterr().out.replace("\n", " ").strip() == f"{out}: {len(rows)} decisions"
    table = pq.read_table(out)
    assert table.schema.equals(record.arrow_schema(), check_metadata=True)
    assert table.to_pylist() == [{name: row[name] for name in table.column_names} for row in rows]
    assert main(["record", str(folder / "journal.sqlite"), "--out", str(out), "--observations"]) == 2
    assert f"{out}: exists already and is not overwritten" in capsys.readouterr().err
    more = tmp_path / "more.parquet"
    assert main(["record", str(folder / "journal.sqlite"), "--out", str(more), "--observations"]) == 0
    assert pq.read_table(more).schema.equals(record.arrow_schema(True))


def test_mistakes_are_one_sentence(
    write_workflow: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(run(write_workflow(small_workflow())))
    for arguments, words in (
        (["record", str(tmp_path), "--out", str(tmp_path / "x.parquet")], "there is no journal"),
        (["record", folder, "--out", str(tmp_path / "away" / "x.parquet")], "cannot be written"),
        (["record", folder, "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("conductor: ") and error.count("\n") == 1 and words in error, error
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConductorError, match=r"function-quest\[record\]"):
        record_run(tmp_path / "nowhere", tmp_path / "x.parquet")


def test_a_run_whose_conductor_died_is_told_as_far_as_it_went(write_workflow: Write) -> None:
    file = write_workflow(small_workflow())
    done = conductor("run", file, "--strategy", "parallel", "--runs", file.parent / "runs", FQ_KILL_AT="after_done:1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (file.parent / "runs").iterdir()
    rows = decisions(folder)
    check_against_journal(folder, rows)
    assert rows[-1]["after"]["status"] == "running" and rows[-1]["after"]["calls"] + rows[-1]["after"]["loading"] > 0

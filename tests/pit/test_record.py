"""The record of decisions: rows counted by hand, a double that never leaves its Pit, a file that is whole or not there."""

from __future__ import annotations

import heapq
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import pit.layout as L
from pit import record
from pit.errors import PitError
from pit.handle import Command, Event, Pit
from pit.spec import WorkflowSpec
from pit.trace import Trace, names_of
from tests.twin.driver import random_workflow

START = L.STANDARD  # of slot 0


def workflow(**system: Any) -> WorkflowSpec:
    """a (model M) and b -> c (model M), in one pool of two places."""
    functions = {
        "f": {"standard": {"pool": "cpu", "model": "M", "seconds": 1.0, "price": 2.0}},
        "g": {"standard": {"pool": "cpu", "seconds": 3.0}},
    }
    return WorkflowSpec.model_validate({
        "name": "hand",
        "system": {
            "memory": {"ram": 4},
            "pools": {"cpu": {"places": 2, "memory": "ram"}},
            "models": {"M": {"size": 3, "load_seconds": 2.0, "price": 1.0}},
            "functions": functions,
            **system,
        },
        "tasks": [
            {"id": "a", "function": "f"},
            {"id": "b", "function": "g"},
            {"id": "c", "function": "f", "after": ["a", "b"]},
        ],
    })  # fmt: skip


def trace_of(pit: Pit) -> Trace:
    return Trace(np.frombuffer(pit.snapshot(), np.uint8).copy(), names_of(pit))


def about() -> dict[str, Any]:
    """What the driver of a Pit must say of itself."""
    unknown = dict.fromkeys(("level", "split", "instance"))
    return {"source": "production", "run": "r", **unknown, "workflow": "hand", "player": "hand", "by": "hand", "note": ""}


def hand_played() -> list[record.Row]:
    """b and a begin at 0; M is loaded at 2.5 s; a ends at 4 s, b at 5 s; c runs from 5 s to 6 s, on the copy that is warm."""
    trace = trace_of(Pit(workflow()))
    trace.apply(Event(L.ARRIVE, 0))
    rows: list[record.Row] = []

    def decide() -> None:
        state = trace.state()
        if trace._row:
            rows.append(trace.finish(state))
        if state["status"] == "running":
            trace.begin(state, START, "full", **about())
            trace.act(START)

    decide()
    decide()
    for time, event in (
        (2_500_000, Event(L.LOADED, 0, elapsed=2_500_000, price=2_500_000)),
        (4_000_000, Event(L.FINISHED, 1, elapsed=1_500_000, price=3_000_000)),
        (4_500_000, Event(L.UNLOADED, 0)),  # does not fit: ignored
        (5_000_000, Event(L.FINISHED, 0, elapsed=5_000_000)),
    ):
        trace.advance(time)
        trace.apply(event)
    decide()
    trace.advance(6_000_000)
    trace.apply(Event(L.FINISHED, 2, elapsed=1_000_000, price=2_000_000))
    decide()
    return rows


def test_rows_as_counted_by_hand() -> None:
    first, second, third = rows = hand_played()
    assert [row["task_id"] for row in rows] == ["b", "a", "c"] and [row["decision"] for row in rows] == [0, 1, 2]
    assert [row["function"] for row in rows] == ["g", "f", "f"] and {row["variant"] for row in rows} == {"standard"}
    assert [row["time_s"] for row in rows] == [0.0, 0.0, 5.0] and [row["seconds"] for row in rows] == [0.0, 5.0, 1.0]
    assert [row["busy_place_seconds"] for row in rows] == [[0.0], [9.0], [1.0]]
    assert [row["money"] for row in rows] == [0.0, 5.5, 2.0] and [row["loads"] for row in rows] == [0, 1, 0]
    assert [row["events"] for row in rows] == [0, 3, 1]
    assert [row["outcome"] for row in rows] == ["warm_start", "cold_start", "warm_start"]
    said = [[(o["time_s"], o["kind"], o["call"], o["task"], o["copy"], o["model"]) for o in row["operations"]] for row in rows]
    a, b, c = 0, 1, 2
    assert said == [
        [(0.0, "start", 0, b, None, None)],
        [(0.0, "load", None, None, 0, "M"), (2.5, "start", 1, a, 0, "M")],
        [(5.0, "start", 2, c, 0, "M")],
    ]
    counts = ("ready", "running", "done", "blocked", "calls", "busy", "loading", "warm", "active", "memory_share", "spent")
    assert [[row["before"][name] for name in counts] for row in rows] == [
        [2, 0, 0, 1, 0, [0], 0, 0, 0, [0.0], 0.0],
        [1, 1, 0, 1, 1, [1], 0, 0, 0, [0.0], 0.0],
        [1, 0, 2, 0, 0, [0], 0, 1, 0, [0.75], 5.5],
    ]
    assert [row["after"] for row in rows[:-1]] == [row["before"] for row in rows[1:]]
    assert third["after"]["status"] == "solved" and third["after"]["done"] == 3 and third["after"]["time_s"] == 6.0
    # upper cost: three calls of 1, 3 and 1 s, of which two cost 2 a second, and two loads of 2 s
    assert third["efficiency"] == third["after"]["score"]["efficiency"] == pytest.approx(1 - 7.5 / 8)
    assert first["legal"] and first["legal_actions"] == 2 and not first["wait_legal"]
    assert second["legal_actions"] == 2 and second["wait_legal"]


def test_an_action_without_a_head() -> None:
    trace = trace_of(Pit(workflow()))
    trace.apply(Event(L.ARRIVE, 0))
    for action, legal in ((L.WAIT, False), (9 * L.N_VERBS, False)):
        trace.begin(trace.state(), action, "full", **about())
        row = trace.finish(trace.state())
        assert row["slot"] is row["task"] is row["variant"] is None and row["legal"] == legal
        assert row["action_name"] == L.action_name(action)


def test_what_timers_do_is_noted_when_they_do_it() -> None:
    """A time-out in the middle of one advance: the place is free from then on."""
    trace = trace_of(Pit(workflow(time_out=2.0, max_attempts=3)))
    trace.apply(Event(L.ARRIVE, 0))
    trace.begin(trace.state(), START, "full", **about())
    trace.act(START)
    trace.advance(10_000_000)
    row = trace.finish(trace.state())
    assert row["busy_place_seconds"] == [6.0] and row["seconds"] == 10.0
    assert [(o["kind"], o["time_s"], o["call"]) for o in row["operations"]] == [("start", 0.0, 0), ("cancel", 6.0, 0)]


def test_a_long_call_is_counted_to_its_end() -> None:
    """Place-microseconds go beyond 32 bits after half an hour."""
    trace = trace_of(Pit(workflow()))
    trace.apply(Event(L.ARRIVE, 0))
    trace.begin(trace.state(), START, "full", **about())
    for _ in range(2):
        trace.state()  # finds the slots
        trace.act(START)
    trace.advance(2_000 * 1_000_000)
    assert trace.finish(trace.state())["busy_place_seconds"] == [4000.0]


def test_committed_money_queues_and_tokens() -> None:
    """One token a second, at most two; a call of 3 s is queued while both places are taken."""
    pools = {"cpu": {"places": 1, "memory": "ram", "rate": 1.0, "burst": 2}}
    trace = trace_of(Pit(workflow(pools=pools, verbs=["standard", "queue"], money=100.0)))
    trace.apply(Event(L.ARRIVE, 0))
    assert trace.state()["tokens_share"] == [1.0]
    trace.act(START)
    state = trace.state()
    assert state["tokens_share"] == [0.5] and state["queued"] == [0]
    trace.act(L.QUEUE)
    trace.advance(250_000)
    state = trace.state()
    assert state["queued"] == [1] and state["ready"] == 1 and state["tokens_share"] == [0.625]
    trace.advance(3_000_000)
    trace.apply(Event(L.FINISHED, 0, elapsed=3_000_000))
    state = trace.state()
    assert state["queued"] == [0] and state["loading"] == 1 and state["committed"] == 4.0  # 1 s of f, 2 s of loading M


@pytest.mark.parametrize("seed", range(12))
def test_the_double_never_leaves_its_pit(seed: int) -> None:
    """Random systems, legal and illegal actions, late events: commands, events and the memory itself stay the same."""
    rng = random.Random(seed)
    pit = Pit(WorkflowSpec.model_validate(random_workflow(rng)))
    trace = trace_of(pit)
    trace.begin(trace.state(), L.WAIT, "full", **about())
    said: list[Command] = []
    coming: list[tuple[int, int, Event]] = [(0, 0, Event(L.ARRIVE, 0))]
    applied = 0
    for step in range(300):
        while pit.decision_due() and pit.status == L.ON and pit.mask().any():
            action = int(rng.choice(np.flatnonzero(pit.mask()))) if rng.random() < 0.95 else rng.randrange(L.N_ACTIONS)
            trace.state()
            pit.act(action)
            trace.act(action)
        commands = pit.commands()
        said += commands
        for command in commands:
            if (answer := answer_to(command, rng)) is not None:
                heapq.heappush(coming, (pit.now + answer.elapsed, step + 1, answer))
        if not coming or pit.status != L.ON:
            break
        time, _, event = heapq.heappop(coming)
        pit.advance(time)
        trace.advance(time)
        fits = pit.apply(event)
        assert trace.apply(event) == fits
        applied += fits
    row = trace.finish(trace.state())
    said += pit.commands()
    assert said and [(o["kind"], o["call"], o["task"], o["copy"]) for o in row["operations"]] == [
        (L.COMMANDS[c.kind], *(x if x >= 0 else None for x in (c.call, c.task, c.copy))) for c in said
    ]
    assert row["events"] == applied
    pit.observe()  # what the last look found is no state
    expected = pit.state_hash()
    pit.restore(trace.memory.tobytes())
    assert pit.state_hash() == expected


def answer_to(command: Command, rng: random.Random) -> Event | None:
    """What an executor might answer, some time later."""
    elapsed = rng.randrange(1, 40) * 50_000
    if command.kind == L.CMD_START:
        error = L.OK if rng.random() < 0.8 else L.ERR_ERROR
        return Event(L.FINISHED, command.call, error, elapsed, price=rng.randrange(9))
    if command.kind == L.CMD_LOAD:
        return Event(L.LOADED if rng.random() < 0.9 else L.LOAD_FAILED, command.copy, elapsed=elapsed)
    return Event(L.UNLOADED, command.copy, elapsed=elapsed) if command.kind == L.CMD_UNLOAD else None


# --------------------------------------------------------------------------- the file
def plain(value: Any) -> Any:
    """A row as it comes back: lists for arrays."""
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("observations", [False, True])
def test_the_file_gives_the_rows_back(tmp_path: Path, observations: bool) -> None:
    rows = hand_played()
    assert record.write(tmp_path / "rows.parquet", rows, observations) == 3
    table = pq.read_table(tmp_path / "rows.parquet")
    names = [column.name for column in record.columns(observations)]
    assert table.to_pylist() == [{name: plain(row[name]) for name in names} for row in rows]
    assert table.schema == record.arrow_schema(observations) and table.schema.metadata[b"schema"] == record.SCHEMA.encode()
    assert set(rows[0]) == {column.name for column in record.columns(True)}
    assert set(rows[0]["before"]) == {column.name for column in record.STATE}
    assert set(rows[0]["operations"][0]) == {column.name for column in record.OPERATION}
    assert len(rows[0]["observation"]) == L.N_OBSERVATION and len(rows[0]["mask"]) == L.N_ACTIONS


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    row = hand_played()[1]
    count = 2 * record.BATCH + 5
    assert record.write(tmp_path / "rows.parquet", ({**row, "decision": i} for i in range(count))) == count
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    assert file.num_row_groups == 3 and file.read(["decision"])["decision"].to_pylist() == list(range(count))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"

    def broken() -> Iterator[record.Row]:
        yield from hand_played() * record.BATCH
        raise KeyboardInterrupt

    for before in ([], ["rows.parquet"]):
        with pytest.raises(KeyboardInterrupt):
            record.write(path, broken())
        assert [file.name for file in tmp_path.iterdir()] == before
        assert record.write(path, hand_played()) == 3
    assert pq.read_table(path).num_rows == 3


def test_a_row_that_lacks_a_column_is_no_row(tmp_path: Path) -> None:
    row = hand_played()[0]
    del row["events"]
    with pytest.raises(ValueError, match="'events' is declared non-nullable"):
        record.write(tmp_path / "rows.parquet", [row])


@pytest.mark.parametrize(("place", "words"), [("away/rows.parquet", "cannot be written"), (".", "is a folder")])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, place: str, words: str) -> None:
    def never() -> Iterator[record.Row]:
        raise AssertionError("a row was asked for")
        yield {}

    with pytest.raises(PitError, match=words):
        record.write(tmp_path / place, never())


def test_without_pyarrow_there_is_a_sentence_that_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import pit.trace; from pit import record\n"
        "try: record.write('rows.parquet', [])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("PitError decisions are recorded with pyarrow") and "function-quest[record]" in done.stdout


def test_the_printed_table_has_every_column() -> None:
    text = record.column_table()
    for table in (record.DECISION, record.OBSERVATION, *record.STRUCTS.values()):
        for column in table:
            assert f"| `{column.name}` | {column.kind} | {column.meaning} |" in text

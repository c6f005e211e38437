"""Snapshots: going on from one is going on from the whole journal, and a bad one costs time only."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor import run as runs
from conductor.errors import ConductorError, Stopped
from conductor.files import canonical
from conductor.journal import Row, journal_path, read_journal
from conductor.orchestrator import begin, fold_runs, resume
from conductor.pit_interface import Fold, Folded, PitInterface, fold
from conductor.report import report_run, verify_run
from conductor.snapshot import read_snapshot
from conductor.workflow import load_workflow
from tests.conductor.helpers import output_of, small_workflow
from tests.conductor.test_crash import finished, killed_run

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots after a few rows already, in processes too."""
    monkeypatch.setenv("FQ_SNAPSHOT_EVERY", "3")


def same(one: Folded, other: Folded) -> bool:
    """Whether two folds came to the same, bit for bit."""
    told = [(f.view.pit.state_hash(), f.view.freeze(), f.time, f.ended, f.last) for f in (one, other)]
    return told[0] == told[1]


@pytest.fixture
def folder(write_workflow: Write) -> Path:
    path = write_workflow(small_workflow())
    return begin(load_workflow(path), path.parent / "runs", strategy="parallel").folder


def test_a_fold_from_any_snapshot_is_the_whole_fold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from those whose files a run has thrown away: they are made again here, and compared."""
    rows = list(read_journal(folder))
    taken: dict[int, bytes] = {}

    def keep(row: Row, view: PitInterface) -> None:
        if row.kind == "snapshot":
            taken[row.seq] = view.freeze()

    whole = fold(rows, keep)
    assert len(taken) > 3 and len(list((folder / "snapshots").iterdir())) == 2
    for seq, content in taken.items():
        folding = Fold(rows[0])

        def put(view: PitInterface, content: bytes = content) -> bool:
            view.thaw(content)
            return True

        assert folding.restored(rows[seq], put)
        for row in rows[seq + 1 :]:
            folding.take(row)
        assert same(folding.result(), whole)
    last = max(taken)
    assert zlib.decompress((folder / "snapshots" / rows[last].data["file"]).read_bytes()) == taken[last]
    read: list[int] = []
    take = Fold.take
    monkeypatch.setattr(Fold, "take", lambda self, row: (read.append(row.seq), take(self, row))[1])
    assert same(fold_runs(journal_path(folder))[0], whole) and read == list(range(last + 1, len(rows)))


def test_a_bad_snapshot_costs_time_only(folder: Path) -> None:
    whole = fold_runs(journal_path(folder), whole=True)[0]
    files = {file: file.read_bytes() for file in (folder / "snapshots").iterdir()}
    for damage in ("flipped", "cut", "empty", "another's", "gone"):
        for (file, content), other in zip(files.items(), reversed(files.values())):
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 1
            damages = {"flipped": flipped, "cut": content[:-1], "empty": b"", "another's": other, "gone": b""}
            file.write_bytes(damages[damage])
            if damage == "gone":
                file.unlink()
            assert not read_snapshot(folder, file.name, whole.view)
        assert same(fold_runs(journal_path(folder))[0], whole)


def test_a_snapshot_that_unpacks_to_too_much_is_none(folder: Path) -> None:
    """One of a stranger, whose journal may name what it likes."""
    whole = fold_runs(journal_path(folder), whole=True)[0]
    pack = zlib.compressobj()
    zeros = bytes(1 << 20)
    bomb = b"".join([pack.compress(whole.view.freeze()), *(pack.compress(zeros) for _ in range(1024)), pack.flush()])
    file = folder / "snapshots" / hashlib.sha256(bomb).hexdigest()
    file.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not read_snapshot(folder, file.name, whole.view)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_a_snapshot_of_another_state_is_refused(folder: Path) -> None:
    """Whole, rightly named, and not what the row says: somebody wrote both."""
    rows = list(read_journal(folder))
    snapshots = [row for row in rows if row.kind == "snapshot"]
    folding = Fold(rows[0])
    with pytest.raises(ConductorError, match="state in the replay is not the one of the snapshot"):
        folding.restored(snapshots[-2], lambda view: read_snapshot(folder, snapshots[-1].data["file"], view))
    position = rows.index(snapshots[0])
    rows[position] = rows[position]._replace(data={**rows[position].data, "state": "0" * 64})
    with pytest.raises(ConductorError, match="state in the replay is not the one of the snapshot"):
        fold(rows)


@pytest.mark.parametrize("key", ["calls", "starts", "outputs", "deleted", "idle", "again"])
def test_a_snapshot_of_another_version_costs_time_only(
    write_workflow: Write, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """One that knows less, or has something else there; nothing of it is taken."""
    freeze = PitInterface.freeze

    def other(view: PitInterface) -> bytes:
        head, _, memory = freeze(view).partition(b"\n")
        known = json.loads(head)
        del known[key]
        return canonical(known if len(taken) % 2 else {**known, key: 7}) + memory

    taken: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setattr(PitInterface, "freeze", lambda view: (taken.append(other(view)), taken[-1])[1])
        path = write_workflow(small_workflow())
        folder = begin(load_workflow(path), path.parent / "runs", strategy="parallel").folder
    whole = fold_runs(journal_path(folder), whole=True)[0]
    before, memory = freeze(whole.view), whole.view.pit.snapshot()
    assert len(taken) > 3 and same(fold_runs(journal_path(folder))[0], whole)
    for content in taken:
        with pytest.raises(ConductorError, match="is none of this workflow and version"):
            whole.view.thaw(content)
        assert freeze(whole.view) == before and whole.view.pit.snapshot() == memory


def names(folder: Path) -> list[str]:
    """Of all snapshots, in the order of the journal."""
    return [row.data["file"] for row in read_journal(folder) if row.kind == "snapshot"]


@pytest.mark.parametrize("wrong", [-(10**6), 10**6])
def test_the_newest_snapshots_stay_whatever_the_time_of_day(write_workflow: Write, wrong: int) -> None:
    """Each file is as old as if the time of day had been set, and the conductor is another one in between."""
    path = write_workflow(small_workflow())
    left: list[set[str]] = []
    counts: list[int] = []

    def observe(*_: object) -> None:
        files = sorted(path.parent.glob("runs/*/snapshots/*"), key=lambda file: file.stat().st_ctime_ns)
        counts.append(len(files))
        for i, file in enumerate(files):
            os.utime(file, (10**9 + i * wrong,) * 2)

    def stop(kind: str, _: int, text: str) -> None:
        observe()
        if kind == "finished" and text.startswith("b "):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        begin(load_workflow(path), path.parent / "runs", strategy="parallel", observer=stop)
    (folder,) = (path.parent / "runs").iterdir()
    before = names(folder)
    left.append({file.name for file in (folder / "snapshots").iterdir()})
    counts.clear()
    assert resume(folder, observe).status == "solved"
    after = names(folder)
    left.append({file.name for file in (folder / "snapshots").iterdir()})
    assert min(counts) == 2 and 2 < len(before) < len(after) and left == [set(before[-2:]), set(after[-2:])]


def test_a_snapshot_without_room_is_left_out(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(folder: Path, view: PitInterface) -> str:
        raise ConductorError("no room")

    monkeypatch.setattr(runs, "write_snapshot", no_room)
    path = write_workflow(small_workflow())
    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    assert result.status == "solved" and not any(row.kind == "snapshot" for row in read_journal(result.folder))


@pytest.mark.parametrize("at", ["before_snapshot:2", "in_snapshot:2"])
def test_killed_around_a_snapshot(write_workflow: Write, at: str) -> None:
    folder = killed_run(write_workflow(small_workflow()), at)
    before = finished(folder)
    result = resume(folder)
    assert result.status == "solved" and output_of(folder, report_run(folder).outputs["c"]) == 123
    assert finished(folder) == dict.fromkeys(("a1", "a2", "b", "c"), 1) and before.keys() <= finished(folder).keys()
    assert verify_run(folder).ended
    assert not list((folder / "snapshots").glob(".*"))

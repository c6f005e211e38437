"""The journal: chained, append-only, one writer, and no reader that overlooks a change."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError, DiskFull
from conductor.head import Head, HeadFile, read_head
from conductor.journal import KINDS, Journal, read_journal, read_run, run_folder, sqlite_note
from tests.conductor.helpers import NAMESPACE, NO_DISK, own_disk

RUN: dict[str, Any] = {key: {} if key in ("workflow", "tables", "rule", "sandbox") else "" for key in KINDS["run"]}


def reload_row(copy: int) -> dict[str, Any]:
    return {"copy": copy, "model": "A", "reason": "ü"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "run", new=True)
    journal.add("run", 0, RUN)
    journal.commit()
    for i in range(5):
        journal.add("reload", 10 * i, reload_row(i))
    journal.commit()
    journal.close()
    return tmp_path / "run"


def change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        for statement in ("DROP TRIGGER no_update", "DROP TRIGGER no_delete", *statements):
            connection.execute(statement)
    connection.close()


def test_rows_come_back_and_the_chain_goes_on(folder: Path) -> None:
    journal = Journal(folder, new=False)
    journal.add("reload", 60, reload_row(9))
    journal.commit()
    journal.close()
    rows = list(read_journal(folder))
    assert [(r.seq, r.kind, r.time) for r in rows] == [
        (0, "run", 0),
        *((i + 1, "reload", 10 * i) for i in range(5)),
        (6, "reload", 60),
    ]
    assert rows[3].data == reload_row(2) and len({r.hash for r in rows}) == 7


def test_rows_not_committed_do_not_exist(folder: Path) -> None:
    journal = Journal(folder, new=False)
    journal.add("reload", 60, reload_row(9))
    journal.close()
    assert len(list(read_journal(folder))) == 6
    with pytest.raises(RuntimeError, match="was closed, and 1 rows were added"):  # not lost in silence
        journal.commit()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE rows SET time = 11 WHERE seq = 2", "row 2: the hash chain is broken"),
        ("UPDATE rows SET payload = replace(payload, '2', '3') WHERE seq = 3", "row 3: the hash chain is broken"),
        ("UPDATE rows SET kind = 'event' WHERE seq = 1", "row 1: the hash chain is broken"),
        ("UPDATE rows SET time = 'x' WHERE seq = 1", "row 1: holds values of other types"),
        ("DELETE FROM rows WHERE seq = 3", "row 4: the hash chain is broken"),
        ("DELETE FROM rows WHERE seq = 0", "row 1: the hash chain is broken"),
        ("DELETE FROM rows", "is empty; its run never began"),
        ("PRAGMA user_version = 2", "has journal schema 2"),
        ("DROP TABLE rows", "cannot be read as a journal"),
    ],
)
def test_every_change_is_noticed(folder: Path, statement: str, words: str) -> None:
    change(folder, statement)
    with pytest.raises(ConductorError, match=words):
        list(read_journal(folder))
    with pytest.raises(ConductorError, match=words):
        Journal(folder, new=False)


def test_a_journal_whose_making_was_cut_short_is_empty(tmp_path: Path) -> None:
    """Killed while SQLite still kept what it would undo beside the file."""
    path = tmp_path / "journal.sqlite"
    code = f"""
import os, sqlite3
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.executescript("PRAGMA cache_size = 1; BEGIN; CREATE TABLE t (x)")
connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 500)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.with_name("journal.sqlite-journal").exists()
    with pytest.raises(ConductorError, match="is empty; its run never began"):
        list(read_journal(tmp_path))


@pytest.mark.parametrize(
    ("kind", "words"), [("spell", "kind 'spell' is unknown"), ("reload", "has the keys copy, model, reason")]
)
def test_unknown_rows_are_refused_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    """As a later version might write them: whole and well chained."""
    journal = Journal(folder, new=False)
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, kind, {"copy": bool})
        journal.add(kind, 60, {"copy": 1})
    journal.commit()
    journal.close()
    with pytest.raises(ConductorError, match=words):
        list(read_journal(folder))


def test_rows_cannot_be_changed_by_accident(folder: Path) -> None:
    connection = sqlite3.connect(folder / "journal.sqlite")
    for statement in ("UPDATE rows SET time = 1", "DELETE FROM rows"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_second_conductor_is_refused_until_the_first_is_gone(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from conductor.journal import Journal
journal = Journal(Path({str(folder)!r}), new=False)
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        with pytest.raises(ConductorError, match="another conductor is writing this journal"):
            Journal(folder, new=False)
        assert len(list(read_journal(folder))) == 6  # readers are welcome
        first.kill()
        first.wait()
        Journal(folder, new=False).close()  # the lock went with its holder


def test_a_full_disk_loses_nothing_and_is_tried_again(folder: Path) -> None:
    journal = Journal(folder, new=False)
    assert journal._connection is not None
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    for i in range(200):
        journal.add("reload", 60, {"copy": i, "model": "A", "reason": "x" * 1000})
    for _ in range(2):
        with pytest.raises(DiskFull, match="disk is full; make room and resume"):
            journal.commit()
        assert len(list(read_journal(folder))) == 6
    journal._connection.execute("PRAGMA max_page_count = 100000")
    journal.commit()
    journal.close()
    assert [row.data["copy"] for row in list(read_journal(folder))[6:]] == list(range(200))


# SQLite says no more of a write that failed than that it did, as it does of a used-up quota: what it may write is limited. The
# limit alone is no full disk; on a disk of its own, which is full, what failed may be tried again. Prints what was seen.
A_WRITE_FAILS = """
import json, resource, subprocess, sys
from pathlib import Path
from conductor.journal import Journal, read_journal
from tests.conductor.test_journal import RUN, reload_row
folder, full = Path(sys.argv[1]), sys.argv[2] == "full"
if full:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
journal, seen = Journal(folder / "run", new=True), []
journal.add("run", 0, RUN)
journal.commit()
journal.add("reload", 10, reload_row(1))
if full:
    with open(folder / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "run" / "journal.sqlite-wal").stat().st_size, before[1]))
for _ in range(2):
    try:
        journal.commit()
    except Exception as error:
        seen.append([type(error).__name__, str(error)])
resource.setrlimit(resource.RLIMIT_FSIZE, before)
(folder / "filler").unlink(missing_ok=True)
journal.commit()
journal.close()
left = sorted(path.name for path in (folder / "run").iterdir())
print(json.dumps([seen, len(list(read_journal(folder / "run"))), left]))
"""


@pytest.mark.parametrize("full", ["", "full"])
def test_a_write_that_fails_is_tried_again_only_if_there_is_no_room(tmp_path: Path, full: str) -> None:
    if full and not own_disk():
        pytest.skip(NO_DISK)
    command = [*(NAMESPACE if full else [sys.executable, "-c"]), A_WRITE_FAILS, str(tmp_path), full]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen, rows, left = json.loads(done.stdout)
    assert [kind for kind, _ in seen] == 2 * ["DiskFull" if full else "ConductorError"]
    assert all("disk I/O error" in text for _, text in seen), "the disk itself was not the first to refuse"
    assert rows == 2 and left == ["journal.head", "journal.lock", "journal.sqlite"]


def test_rows_missing_at_the_end_are_noticed(folder: Path) -> None:
    """The chain cannot show them; the head beside the journal does, and one kept elsewhere when that went with them."""
    change(folder, "DELETE FROM rows WHERE seq > 3")
    with pytest.raises(ConductorError, match=r"ends with row 3, and journal\.head says that row 5 was written"):
        list(read_journal(folder))
    with pytest.raises(ConductorError, match="row 5 was written"):
        Journal(folder, new=False)
    (folder / "journal.head").unlink()
    assert len(list(read_journal(folder))) == 4


def test_a_log_left_behind_is_noticed(folder: Path) -> None:
    """Copying the file alone while a conductor writes leaves the newest rows in its log."""
    journal = Journal(folder, new=False)
    journal.add("reload", 60, reload_row(9))
    journal.commit()
    copy = folder.parent / "copy"
    copy.mkdir()
    for name in ("journal.sqlite", "journal.head"):
        shutil.copy(folder / name, copy / name)
    journal.close()
    with pytest.raises(ConductorError, match=r"was a journal\.sqlite-wal left behind"):
        list(read_journal(copy))
    assert len(list(read_journal(folder))) == 7


def test_a_log_that_was_left_behind_is_missed(tmp_path: Path) -> None:
    """As after a kill: all that was written may stand in the log, and the file be empty."""
    journal = Journal(tmp_path / "run", new=True)
    for row in (("run", 0, RUN), ("reload", 10, reload_row(1))):
        journal.add(*row)
        journal.commit()
    (tmp_path / "copy").mkdir()
    for name in ("journal.sqlite", "journal.head"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "copy")
    with pytest.raises(
        ConductorError, match=r"is empty, and journal\.head says that row 1 .* a journal\.sqlite-wal left behind"
    ):
        list(read_journal(tmp_path / "copy"))
    (tmp_path / "copy" / "journal.head").unlink()
    with pytest.raises(ConductorError, match="is empty; its run never began"):
        list(read_journal(tmp_path / "copy"))
    shutil.copy(tmp_path / "run" / "journal.sqlite-wal", tmp_path / "copy")
    journal.close()
    assert len(list(read_journal(tmp_path / "copy"))) == 2


def test_another_journal_under_an_old_head_is_noticed(folder: Path) -> None:
    other = Journal(folder.parent / "other", new=True)
    other.add("run", 0, {**RUN, "id": "other"})
    other.commit()
    other.close()
    (folder.parent / "other" / "journal.head").write_bytes(b"%020d %s\n" % (0, b"f" * 64))
    with pytest.raises(ConductorError, match="this is another journal than it was"):
        list(read_journal(folder.parent / "other"))
    (folder / "journal.head").write_bytes(b"rubbish")
    with pytest.raises(ConductorError, match="holds no number and hash of a row; delete it"):
        list(read_journal(folder))


def test_a_head_that_is_being_written_is_read_whole(tmp_path: Path) -> None:
    """The first look finds the number of the new one with the hash of the old one; then the rest is written."""
    old, new = Head(5, "a" * 64), Head(6, "b" * 64)
    file = HeadFile(tmp_path / "journal.head")
    file.write(Head(new.seq, old.hash))

    class Written(type(tmp_path)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            content = super().read_bytes()
            file.write(new)
            return bytes(content)

    assert read_head(Written(tmp_path / "journal.head")) == new
    file.close()


def test_a_head_kept_elsewhere(folder: Path) -> None:
    heads = folder.parent / "heads"
    for place in (folder.parent / "file", Path("/proc/heads")):
        (folder.parent / "file").touch()
        for new in (False, True):
            with pytest.raises(ConductorError, match=rf"^{place}/\w+\.head: this head cannot be written"):
                Journal(folder.parent / "other" if new else folder, new=new, heads=place)
    assert not (folder.parent / "other").exists()
    journal = Journal(folder, new=False, heads=heads)
    row = journal.add("reload", 60, reload_row(9))
    assert read_head(heads / "run.head") == Head(5, list(read_journal(folder))[-1].hash)  # not before it is committed
    journal.commit()
    journal.close()
    assert read_head(heads / "run.head") == read_head(folder / "journal.head") == Head(6, row.hash)


def test_a_cut_journal_is_not_gone_on_with_over_a_head_kept_elsewhere(folder: Path) -> None:
    """Nor is another one begun: what shows the cut stays. A head that is older than its journal is true as well."""
    heads = folder.parent / "heads"
    Journal(folder, new=False, heads=heads).close()
    whole = (heads / "run.head").read_bytes()
    shutil.copytree(folder, folder.parent / "whole")
    change(folder, "DELETE FROM rows WHERE seq > 3")
    (folder / "journal.head").unlink()
    for new in (False, True):
        if new:
            shutil.rmtree(folder)
        with pytest.raises(ConductorError, match=r"does not hold the row 5 that .*/heads/run\.head names.*or delete .*head"):
            Journal(folder, new=new, heads=heads)
        assert (heads / "run.head").read_bytes() == whole
    (folder.parent / "whole").rename(folder)
    journal = Journal(folder, new=False)
    row = journal.add("reload", 60, reload_row(9))
    journal.commit()
    journal.close()
    (heads / "run.head").write_bytes(b"%020d %s\n" % (5, b"f" * 64))
    with pytest.raises(ConductorError, match="does not hold the row 5"):
        Journal(folder, new=False, heads=heads)
    (heads / "run.head").write_bytes(whole)
    Journal(folder, new=False, heads=heads).close()
    assert read_head(heads / "run.head") == Head(6, row.hash)


def test_a_journal_that_has_no_room_to_begin_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(ConductorError, match=r"run/journal\.sqlite: cannot be written"):
            Journal(tmp_path / "run", new=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "run").exists()


def test_two_writers_cannot_add_the_same_row(folder: Path) -> None:
    """Should somebody take the lock's file away: the second to write is refused, and the chain stays whole."""
    first = Journal(folder, new=False)
    (folder / "journal.lock").unlink()
    second = Journal(folder, new=False)
    for journal, copy in ((second, 1), (first, 2)):
        journal.add("reload", 60, reload_row(copy))
    second.commit()
    for _ in range(2):
        with pytest.raises(ConductorError, match="another conductor has written this journal"):
            first.commit()
    first.close()
    second.close()
    assert [row.data["copy"] for row in list(read_journal(folder))[6:]] == [1]


def test_a_stopped_conductor_keeps_its_journal(folder: Path) -> None:
    """The lock is the process's, also while it is stopped: there is no lease that could run out under it."""
    code = f"""
import sys
from pathlib import Path
from conductor.journal import Journal
journal = Journal(Path({str(folder)!r}), new=False)
print("open", flush=True)
sys.stdin.readline()
journal.add("reload", 60, {{"copy": 9, "model": "A", "reason": ""}})
journal.commit()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(ConductorError, match="another conductor is writing this journal"):
            Journal(folder, new=False)
        first.send_signal(signal.SIGCONT)
        first.communicate("go on\n")
    assert first.returncode == 0 and list(read_journal(folder))[-1].data["copy"] == 9


def test_several_runs_in_one_chain(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "both", new=True)
    for run in range(6):
        (tmp_path / "both" / f"00{run}").mkdir()
        journal.add("run", 0, {**RUN, "id": f"r{run}", "folder": f"00{run}"}, run)
    for i in range(4):
        journal.add("reload", i, reload_row(i), i % 2)
    journal.commit()
    journal.close()
    rows = list(read_run(tmp_path / "both" / "001"))
    assert [row.data.get("id", row.data.get("copy")) for row in rows] == ["r1", 1, 3]
    assert run_folder(tmp_path / "both" / "001", rows[0].data) == tmp_path / "both" / "001"
    for place in (tmp_path / "both", tmp_path / "both" / "journal.sqlite"):
        with pytest.raises(ConductorError, match=r"folder of one: .*/both/000, .*/both/001, .*/both/004, \.\.\.$"):
            list(read_run(place))
    (tmp_path / "both" / "more").mkdir()
    with pytest.raises(ConductorError, match="holds no run of the folder more"):
        list(read_run(tmp_path / "both" / "more"))
    for name in ("..", "a/b", "/tmp"):
        with pytest.raises(ConductorError, match="one inside its own is needed"):
            run_folder(tmp_path / "both", {"folder": name})


@pytest.mark.parametrize("run", [-1, 1, 2])
def test_rows_of_no_run_are_refused(folder: Path, run: int) -> None:
    journal = Journal(folder, new=False)
    journal.add("reload", 60, reload_row(9), run)
    journal.commit()
    journal.close()
    with pytest.raises(ConductorError, match="row 6: a run begins with its only `run` row"):
        list(read_journal(folder))


def test_a_version_of_sqlite_with_a_known_fault_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    assert "one writer" in sqlite_note()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert sqlite_note() == ""

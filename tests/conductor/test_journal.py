"""The journal: chained, append-only, one writer, and no reader that overlooks a change."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.journal import KINDS, Journal, read_journal

RUN: dict[str, Any] = dict.fromkeys(KINDS["run"], "")


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
        ("PRAGMA user_version = 3", "has journal schema 3"),
        ("DROP TABLE rows", "cannot be read as a journal"),
    ],
)
def test_every_change_is_noticed(folder: Path, statement: str, words: str) -> None:
    change(folder, statement)
    with pytest.raises(ConductorError, match=words):
        list(read_journal(folder))
    with pytest.raises(ConductorError, match=words):
        Journal(folder, new=False)


@pytest.mark.parametrize(
    ("kind", "words"), [("spell", "kind 'spell' is unknown"), ("reload", "has the keys copy, model, reason")]
)
def test_unknown_rows_are_refused_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    """As a later version might write them: whole and well chained."""
    journal = Journal(folder, new=False)
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, kind, {"copy"})
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


def test_bit_flips_in_the_file_are_noticed_or_harmless(folder: Path) -> None:
    rows = list(read_journal(folder))
    path = folder / "journal.sqlite"
    content = path.read_bytes()
    noticed = 0
    for position in range(0, len(content), 41):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        other = folder / f"flipped-{position}"
        other.write_bytes(changed)
        try:
            assert list(read_journal(other)) == rows
        except ConductorError:
            noticed += 1
        other.unlink()
    assert noticed > 10


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


def test_a_full_disk_is_a_sentence_and_loses_nothing(folder: Path) -> None:
    journal = Journal(folder, new=False)
    assert journal._connection is not None
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(200):
        journal.add("reload", 60, {"copy": 1, "model": "A", "reason": "x" * 1000})
    with pytest.raises(ConductorError, match="disk is full; make room and resume"):
        journal.commit()
    journal.close()
    assert len(list(read_journal(folder))) == 6

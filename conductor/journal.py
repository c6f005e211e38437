"""The journal of a run: an append-only SQLite file whose rows are hash-chained, with one writer and one commit per tick.

It is the only truth about a run: state is the fold of its rows through the Pit. Outputs of calls lie beside it, named by their
sha256. What stands here knows the rows' shape, not their meaning.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from conductor.errors import ConductorError
from conductor.files import canonical, parse_canonical, sync_directory, write_once

SCHEMA = 1  # PRAGMA user_version; a journal of another schema is refused
FILE = "journal.sqlite"
# Row kind -> the keys of its payload, all of them needed.
KINDS = {
    "run": {"id", "workflow", "workflow_digest", "base", "bundle", "strategy", "exposure", "tables", "sandbox"},
    "action": {"action", "observation", "mask", "by", "note"},  # by: who decided; note: why not the policy, or ""
    "event": {"kind", "subject", "error", "elapsed", "quality", "size", "price", "applied", "output", "text"},
    "intent": {"call", "task", "function", "variant", "key", "attempt", "copy"},
    "reload": {"copy", "model", "reason"},  # a copy that the Pit holds for loaded was really loaded again
    "resume": {"lost", "sandbox"},  # calls whose worker died with the conductor; the sandboxes from now on
    "end": {"status", "state"},
}
_GENESIS = "0" * 64
_TABLE = """
CREATE TABLE rows
    (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, time INTEGER NOT NULL, payload TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER no_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class Row(NamedTuple):
    """One row: `time` in microseconds since the run began, `hash` over the row before and everything in this one."""

    seq: int
    kind: str
    time: int
    data: dict[str, Any]
    hash: str


def _chain(previous: str, seq: int, kind: str, time: int, payload: str) -> str:
    return hashlib.sha256(f"{previous}\n{seq}\n{kind}\n{time}\n{payload}".encode()).hexdigest()


def journal_path(place: str | os.PathLike[str]) -> Path:
    """The journal file of a run folder (or the file itself). Raises ConductorError if there is none."""
    path = Path(place)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ConductorError(f"{path}: there is no journal; name the folder of a run (`--runs` DIR/...)")
    return path


def read_journal(place: str | os.PathLike[str]) -> Iterator[Row]:
    """Every row in order, each verified before it is given out; opened read-only.

    Raises:
        ConductorError: no journal, another schema, a broken chain, an unknown kind, or a payload with other keys.
    """
    path = journal_path(place)
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            yield from _verified(connection, path)
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ConductorError(f"{path}: cannot be read as a journal: {error}") from error


def _verified(connection: sqlite3.Connection, path: Path) -> Iterator[Row]:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA:
        raise ConductorError(f"{path}: has journal schema {version}; this conductor reads schema {SCHEMA}")
    previous, kind = _GENESIS, ""
    for number, raw in enumerate(connection.execute("SELECT seq, kind, time, payload, hash FROM rows ORDER BY seq")):
        where = f"{path}: row {raw[0]}"
        if [type(value) for value in raw] != [int, str, int, str, str]:
            raise ConductorError(f"{where}: holds values of other types than a journal's")
        seq, kind, time, payload, row_hash = raw
        if seq != number or row_hash != _chain(previous, seq, kind, time, payload):
            raise ConductorError(
                f"{where}: the hash chain is broken here; this row or one before it was changed or taken away"
            )
        if kind not in KINDS:
            raise ConductorError(f"{where}: kind {kind!r} is unknown to this conductor; known are {', '.join(KINDS)}")
        if (kind == "run") != (seq == 0):
            raise ConductorError(f"{where}: a journal begins with its only `run` row")
        data = parse_canonical(f"{payload}\n".encode(), where)
        if not isinstance(data, dict) or set(data) != KINDS[kind]:
            raise ConductorError(f"{where}: a row of kind {kind} has the keys {', '.join(sorted(KINDS[kind]))}")
        yield Row(seq, kind, time, data, row_hash)
        previous = row_hash
    if not kind:
        raise ConductorError(f"{path}: is empty; its run never began")


class Journal:
    """The one writer of a journal. Rows given to `add` become durable together, with the next `commit`."""

    def __init__(self, folder: Path, *, new: bool) -> None:
        """Open the journal of a run folder for writing.

        Raises:
            ConductorError: another conductor writes it; the folder cannot be written; it exists though `new`, or is missing.
        """
        self.folder = folder
        self.path = folder / FILE
        self._pending: list[Row] = []
        self._connection: sqlite3.Connection | None = None
        self._next, self._hash = 0, _GENESIS
        try:
            if new:
                folder.mkdir(parents=True, exist_ok=True)
            elif not self.path.is_file():
                raise ConductorError(f"{self.path}: there is no journal to go on with")
            # Not on the database file itself: closing any descriptor of it would drop SQLite's own locks.
            self._lock = os.open(folder / "journal.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConductorError(f"{folder}: cannot be written ({error.strerror}); choose another `--runs` folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConductorError(
                f"{self.path}: another conductor is writing this journal; wait for it or end it first"
            ) from error
        try:
            self._open(new)
        except sqlite3.Error as error:
            self.close()
            raise ConductorError(f"{self.path}: cannot be written: {error}") from error
        except (ConductorError, OSError):
            self.close()
            raise

    def _open(self, new: bool) -> None:
        if new and self.path.exists():
            raise ConductorError(f"{self.path}: exists already; `resume` goes on with it")
        (self.folder / "outputs").mkdir(exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=FULL")
        if new:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(f"BEGIN; {_TABLE} PRAGMA user_version={SCHEMA}; COMMIT;")
            sync_directory(self.folder)
        else:
            for row in read_journal(self.path):
                self._next, self._hash = row.seq + 1, row.hash

    def add(self, kind: str, time: int, data: dict[str, Any]) -> Row:
        """Append a row (not yet durable). `time` in microseconds since the run began."""
        if set(data) != KINDS[kind]:
            raise KeyError(f"a row of kind {kind} needs exactly {sorted(KINDS[kind])}")
        payload = canonical(data).decode()[:-1]
        row = Row(self._next, kind, time, data, _chain(self._hash, self._next, kind, time, payload))
        self._next, self._hash = row.seq + 1, row.hash
        self._pending.append(row)
        return row

    def commit(self) -> None:
        """Make every added row durable: one transaction, one fsync.

        Raises:
            ConductorError: the disk is full or gone; nothing of this commit was recorded.
        """
        if not self._pending or self._connection is None:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?)",
                [(r.seq, r.kind, r.time, canonical(r.data).decode()[:-1], r.hash) for r in self._pending],
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConductorError(f"{self.path}: cannot be written: {error}; make room and resume") from error
        self._pending.clear()

    def store(self, value: Any) -> tuple[str, int]:
        """Keep an output (any JSON value) under its digest; returns (sha256, size in bytes). Durable on return."""
        content = canonical(value)
        name = hashlib.sha256(content).hexdigest()
        try:
            write_once(self.folder / "outputs" / name, content)
        except OSError as error:
            raise ConductorError(
                f"{self.folder}/outputs: cannot be written ({error.strerror}); make room and resume"
            ) from error
        return name, len(content)

    def output(self, name: str) -> Any:
        """The output with this digest. Raises ConductorError if it is missing or was changed."""
        return read_output(self.folder, name)

    def close(self) -> None:
        """Let go of the file and the lock; rows not committed are forgotten."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_output(folder: Path, name: str) -> Any:
    """The output of a run folder with this digest. Raises ConductorError if it is missing or was changed."""
    return json.loads(read_content(folder, name))


def cold_path(path: Path) -> Path:
    """Where an output whose file is `path` lies compressed."""
    return path.with_name(f"{path.name}.z")


def read_content(folder: Path, name: str) -> bytes:
    """The canonical JSON of an output, compressed or not. Raises ConductorError if it is missing or was changed."""
    path = folder / "outputs" / name
    try:
        content = path.read_bytes() if path.exists() else zlib.decompress(cold_path(path).read_bytes())
    except OSError as error:
        raise ConductorError(f"{path}: this output cannot be read ({error.strerror})") from error
    except zlib.error:
        content = b""
    if hashlib.sha256(content).hexdigest() != name:
        raise ConductorError(f"{path}: this output was changed after it was recorded")
    return content

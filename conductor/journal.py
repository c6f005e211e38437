"""The journal: an append-only SQLite file whose rows are hash-chained, with one writer and one commit per tick.

It is the only truth about the runs of a conductor: the state of each is the fold of its rows through the Pit. Outputs of calls
lie outside, named by their sha256. What stands here knows the rows' shape, not their meaning.

The writer is fenced twice. A lock on `journal.lock` belongs to the process as long as it lives, also while it is stopped, so
that no lease can run out under it; and should somebody take that file away, two writers would add rows of the same number,
of which SQLite takes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from conductor.errors import ConductorError, DiskFull
from conductor.files import canonical, has_room, is_digest, make_folder, parse_canonical, sync_directory
from conductor.head import FILE as HEAD
from conductor.head import Head, HeadFile, read_head

SCHEMA = 3  # PRAGMA user_version; a journal of another schema is refused
FILE = "journal.sqlite"
MOST = 2**62  # no number of a payload is larger
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST


def _or(other: Any, check: Check) -> Check:
    return lambda value: value == other or check(value)


_COUNT, _DIGEST = _whole(0, MOST), is_digest
# Row kind -> the keys of its payload, all of them needed, and what each value must be.
KINDS: dict[str, Mapping[str, Check]] = {
    # `folder`: of the run, inside the journal's ("." for a run alone); `began`: UTC, for people, the only time of day anywhere
    # `sandbox`: what each variant runs in, by its name
    # `bundle`, `shadow`: the sha256 of a manifest, or ""; `signature`, `shadow_signature`: what was known of their maker, and
    # whether that was let pass; `rule`: name and parameters of what decides when the policy cannot
    "run": {
        **dict.fromkeys(("id", "folder", "began", "strategy", "exposure"), _name),
        **dict.fromkeys(("workflow_digest", "base", "bundle", "signature", "shadow", "shadow_signature"), _text),
        **{"workflow": _table, "tables": _table, "rule": _table, "sandbox": _texts},
    },
    # `by`: who decided, and with which `bundle` if the policy did; `note`: why not the policy, or ""; `latency`: us of the
    # choice; `distance`, `tripped`: of the guard; `shadow`: what another policy would have done (conductor.decision_maker)
    "action": {
        **{"action": _whole(0, 127), "observation": _DIGEST, "mask": _DIGEST, "by": _name, "bundle": _text, "note": _name},
        **{"latency": _COUNT, "distance": _or(None, _number), "tripped": _flag, "shadow": _or(None, _whole(-1, MOST))},
    },
    "event": {
        **{"kind": _name, "subject": _whole(-1, 2**31 - 1), "error": _name, "elapsed": _COUNT, "quality": _number},
        **{"size": _COUNT, "price": _COUNT, "applied": _flag, "output": _or("", _DIGEST), "text": _text},
    },
    "intent": {
        **dict.fromkeys(("task", "function", "variant", "key"), _name),
        **{"call": _COUNT, "attempt": _COUNT, "copy": _whole(-1, MOST)},
    },
    "reload": {"copy": _COUNT, "model": _name, "reason": _text},  # one that the Pit holds for loaded was really loaded again
    # `lost`: calls whose worker died with the conductor
    "resume": {"lost": lambda value: isinstance(value, list) and all(map(_COUNT, value)), "sandbox": _texts},
    "snapshot": {"file": _DIGEST, "state": _text},  # sha256 of a file in `snapshots/`, and the Pit's state hash
    "parked": {"reason": _text, "since": _COUNT},  # nothing could be recorded then (us); it was waited for
    "stop": {"reason": _text},  # the conductor was asked to end; `resume` goes on
    "end": {"status": _name, "state": _text},
}
_GENESIS = "0" * 64
_EMPTY = "is empty; its run never began"
_TABLE = """
CREATE TABLE rows (seq INTEGER PRIMARY KEY, run INTEGER NOT NULL, kind TEXT NOT NULL, time INTEGER NOT NULL,
    payload TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER no_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""
_WAL_RESET_FIXED = (3, 51, 3)
_PROBE = 1 << 16  # bytes: what a commit writes besides its rows
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Row(NamedTuple):
    """One row: `time` in microseconds since its run began, `hash` over the row before and everything in this one."""

    seq: int
    run: int  # 0, 1, ... in the order in which the runs began
    kind: str
    time: int
    data: dict[str, Any]
    hash: str


def _chain(previous: str, seq: int, run: int, kind: str, time: int, payload: str) -> str:
    return hashlib.sha256(f"{previous}\n{seq}\n{run}\n{kind}\n{time}\n{payload}".encode()).hexdigest()


def sqlite_note() -> str:
    """What there is to know about this SQLite, one sentence; empty if there is nothing."""
    if sqlite3.sqlite_version_info >= _WAL_RESET_FIXED:
        return ""
    return (
        f"SQLite {sqlite3.sqlite_version} may damage a write-ahead log that two connections write or checkpoint at the same "
        "instant (mended in 3.51.3); a journal has one writer, and must be opened read-only by everybody else"
    )


def journal_path(place: str | os.PathLike[str]) -> Path:
    """The journal of a run: of its own folder, of the folder around it, or the file itself. Raises ConductorError if there is
    none."""
    path = Path(place)
    try:
        if path.is_dir():
            around = path.absolute().parent / FILE
            path = around if not (path / FILE).is_file() and around.is_file() else path / FILE
        found = path.is_file()
    except OSError as error:
        raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
    if not found:
        raise ConductorError(f"{path}: there is no journal; name the folder of a run (`--runs` DIR/...)")
    return path


def read_run(place: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of one run, verified like all the others of its journal: the only run, or the one whose folder `place` is.

    Raises:
        ConductorError: as `read_journal`; a journal of several runs, of which `place` names none.
    """
    path, number = journal_path(place), -1
    inside = Path(place).absolute()
    name = inside.name if inside.is_dir() and inside != path.absolute().parent else "."
    for row in read_journal(path):
        if row.kind == "run":
            if name == "." and row.run > 0:
                names = [f"{path.parent}/{found.data['folder']}" for found in peek(path, "run")]
                known = ", ".join(names[:5] + ["..."] * (len(names) > 5))
                raise ConductorError(f"{path}: holds several runs; name the folder of one: {known}")
            if row.data["folder"] == name or (name == "." and row.run == 0):
                number = row.run
        if row.run == number:
            yield row
    if number < 0:
        raise ConductorError(f"{path}: holds no run of the folder {name}")


def run_folder(place: str | os.PathLike[str], run: dict[str, Any]) -> Path:
    """Where a run's files are; `run` is the payload of its first row. Raises ConductorError for a place elsewhere."""
    path, name = journal_path(place), str(run["folder"])
    if name != "." and (Path(name).name != name or name == ".."):
        raise ConductorError(f"{path}: names the folder {name!r} for a run; one inside its own is needed")
    return path.parent / name


def read_journal(place: str | os.PathLike[str]) -> Iterator[Row]:
    """Every row of every run in order, each verified before it is given out; opened read-only.

    Raises:
        ConductorError: no journal, another schema, a broken chain, an unknown kind, a payload with other keys or values, or an
            end before the row that the head beside it names.
    """
    path = journal_path(place)
    try:
        head = read_head(path.with_name(HEAD)) if path.name == FILE else None  # before the rows: they may become more
        connection = _open_to_read(path)
        try:
            yield from _verified(connection, path, head)
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK:  # only its making is to be undone
            raise ConductorError(f"{path}: {_EMPTY}") from error
        raise ConductorError(f"{path}: cannot be read as a journal: {error}") from error


def peek(path: Path, *kinds: str) -> list[Row]:
    """The rows of some kinds, quickly and not verified: who relies on one compares it with what `read_journal` gives.

    Raises:
        ConductorError: the file cannot be read as a journal.
    """
    try:
        connection = _open_to_read(path)
        try:
            marks = ", ".join("?" * len(kinds))
            found = connection.execute(f"SELECT * FROM rows WHERE kind IN ({marks}) ORDER BY seq", kinds).fetchall()
        finally:
            connection.close()
        rows = [Row(seq, run, kind, time, json.loads(payload), row_hash) for seq, run, kind, time, payload, row_hash in found]
        return [row for row in rows if isinstance(row.data, dict)]
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise ConductorError(f"{path}: cannot be read as a journal: {error}") from error


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Where nothing can be written beside a journal that was closed, it is read as a file that never changes."""
    log = path.with_name(f"{path.name}-wal")
    closed = not log.exists() or not log.stat().st_size
    fixed = closed and not os.access(path.parent, os.W_OK)
    options = "mode=ro&immutable=1" if fixed else "mode=ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)


def _verified(connection: sqlite3.Connection, path: Path, head: Head | None) -> Iterator[Row]:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # all of it was in the log
        raise ConductorError(f"{path}: {_EMPTY}" if head is None else f"{path}: is empty, {_cut(path, head)}")
    if version != SCHEMA:
        raise ConductorError(f"{path}: has journal schema {version}; this conductor reads schema {SCHEMA}")
    previous, runs, number = _GENESIS, 0, -1
    for number, raw in enumerate(connection.execute("SELECT seq, run, kind, time, payload, hash FROM rows ORDER BY seq")):
        where = f"{path}: row {raw[0]}"
        if [type(value) for value in raw] != [int, int, str, int, str, str]:
            raise ConductorError(f"{where}: holds values of other types than a journal's")
        seq, run, kind, time, payload, row_hash = raw
        if seq != number or row_hash != _chain(previous, seq, run, kind, time, payload):
            raise ConductorError(
                f"{where}: the hash chain is broken here; this row or one before it was changed or taken away"
            )
        if kind not in KINDS:
            raise ConductorError(f"{where}: kind {kind!r} is unknown to this conductor; known are {', '.join(KINDS)}")
        if not 0 <= run <= runs or (kind == "run") != (run == runs):
            raise ConductorError(f"{where}: a run begins with its only `run` row, and runs are numbered in order")
        runs += kind == "run"
        data = parse_canonical(f"{payload}\n".encode(), where, sort=False)
        if not isinstance(data, dict) or set(data) != set(KINDS[kind]):
            raise ConductorError(f"{where}: a row of kind {kind} has the keys {', '.join(sorted(KINDS[kind]))}")
        for key, check in KINDS[kind].items():
            if not check(data[key]):
                raise ConductorError(f"{where} ({kind}): {key} is {str(data[key])[:80]!r}, which no conductor writes")
        if head is not None and seq == head.seq and row_hash != head.hash:
            raise ConductorError(f"{where}: is not the row {seq} that {HEAD} names; this is another journal than it was")
        yield Row(seq, run, kind, time, data, row_hash)
        previous = row_hash
    if number < 0:
        raise ConductorError(f"{path}: {_EMPTY}")
    if head is not None and number < head.seq:
        raise ConductorError(f"{path}: ends with row {number}, {_cut(path, head)}; delete {HEAD} to take what is there")


def _cut(path: Path, head: Head) -> str:
    return f"and {HEAD} says that row {head.seq} was written: the end was cut off (was a {path.name}-wal left behind?)"


def not_held(path: Path, seq: int, head: Path) -> ConductorError:
    """A journal that does not hold the row `seq` which the head in a file names."""
    return ConductorError(
        f"{path}: does not hold the row {seq} that {head} names; it was cut off or is another journal: put the whole one "
        f"back, or delete {head} to take what is there"
    )


class Journal:
    """The one writer of a journal. Rows given to `add` become durable together, with the next `commit`."""

    def __init__(self, folder: Path, *, new: bool, heads: Path | None = None) -> None:
        """Open the journal of a folder for writing. `heads`: another folder, made if need be, that gets
        `<name of the folder>.head`.

        Raises:
            ConductorError: another conductor writes it; a folder cannot be written; it exists though `new`, or is missing; it
                does not hold the row that a head names. A folder that was made for it is gone again.
        """
        self.folder = folder
        self.path = folder / FILE
        self.commits = 0
        self._pending: list[tuple[int, int, str, int, str, str]] = []
        self._connection: sqlite3.Connection | None = None
        self._heads: list[HeadFile] = []
        self._next, self._hash = 0, _GENESIS
        made = False
        try:
            if new:
                made = not folder.exists()
                make_folder(folder)
            elif not self.path.is_file():
                raise ConductorError(f"{self.path}: there is no journal to go on with")
            # Not on the database file itself: closing any descriptor of it would drop SQLite's own locks.
            self._lock = os.open(folder / "journal.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if made:
                shutil.rmtree(folder, ignore_errors=True)
            right = "choose another `--runs` folder" if new else "who goes on with a run must be able to write into its folder"
            raise ConductorError(f"{folder}: cannot be written ({error.strerror}); {right}") from error
        try:
            self._open(new, heads)
        except BaseException as error:
            self.close()
            if made:  # nothing half-made is left
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, BlockingIOError):
                raise ConductorError(
                    f"{self.path}: another conductor is writing this journal; wait for it or end it first"
                ) from error
            if isinstance(error, (sqlite3.Error, OSError)):
                raise ConductorError(f"{self.path}: cannot be written: {error}") from error
            raise

    def _open(self, new: bool, heads: Path | None) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if new and self.path.exists():
            raise ConductorError(f"{self.path}: exists already; `resume` goes on with it")
        # Autocommit; the thread of an orchestrator may be another one than that which made it.
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous=FULL")
        if new:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(f"BEGIN; {_TABLE} PRAGMA user_version={SCHEMA}; COMMIT;")
            sync_directory(self.folder)
        else:
            self._connection.execute("BEGIN IMMEDIATE")  # a file that cannot be written is refused now
            self._connection.execute("ROLLBACK")
        missed: dict[tuple[int, str], Path] = {}  # rows that a head names
        for place in [self.folder / HEAD] + ([heads / f"{self.folder.name}.head"] if heads is not None else []):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                self._heads.append(HeadFile(place))
            except OSError as error:
                raise ConductorError(f"{place}: this head cannot be written ({error.strerror})") from error
            if (head := read_head(place)) is not None:
                missed[head] = place
        for row in () if new else read_journal(self.path):
            self._next, self._hash = row.seq + 1, row.hash
            missed.pop((row.seq, row.hash), None)
        for (seq, _), place in missed.items():  # before a newer head takes the place of what shows it
            raise not_held(self.path, seq, place)
        self._write_heads()

    def add(self, kind: str, time: int, data: dict[str, Any], run: int = 0) -> Row:
        """Append a row (not yet durable). `time` in microseconds since its run began."""
        if set(data) != set(KINDS[kind]):
            raise KeyError(f"a row of kind {kind} needs exactly {sorted(KINDS[kind])}")
        payload = canonical(data, sort=False).decode()[:-1]
        seq, row_hash = self._next, _chain(self._hash, self._next, run, kind, time, payload)
        self._next, self._hash = seq + 1, row_hash
        self._pending.append((seq, run, kind, time, payload, row_hash))
        return Row(seq, run, kind, time, data, row_hash)

    def commit(self) -> None:
        """Make every added row durable: one transaction, one fsync.

        Raises:
            DiskFull: there is no room, or a quota is used up; nothing of this commit was recorded, and it may be tried again.
            ConductorError: the disk is gone, or somebody else has written; nothing of this commit was recorded.
        """
        connection = self._connection
        if not self._pending:
            return
        if connection is None:
            raise RuntimeError(f"{self.path}: was closed, and {len(self._pending)} rows were added since")
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", self._pending)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.IntegrityError):
                raise ConductorError(f"{self.path}: another conductor has written this journal ({error})") from error
            kind = DiskFull if self._no_room(error) else ConductorError
            raise kind(f"{self.path}: cannot be written: {error}; make room and resume") from error
        self._pending.clear()
        self.commits += 1
        self._write_heads()

    def _no_room(self, error: sqlite3.Error) -> bool:
        """Whether that is why a commit failed. SQLite knows of full disks; a used-up quota is to it a write that failed."""
        if error.sqlite_errorcode != sqlite3.SQLITE_IOERR_WRITE:
            return error.sqlite_errorcode in _NO_ROOM
        return not has_room(self.folder, _PROBE + sum(len(row[4]) for row in self._pending))

    def _write_heads(self) -> None:
        if self._next:
            for head in self._heads:
                with contextlib.suppress(OSError):  # an older head is true as well
                    head.write(Head(self._next - 1, self._hash))

    def close(self) -> None:
        """Let go of the file and the lock; rows not committed are forgotten."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for head in self._heads:
            head.close()
        self._heads = []
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

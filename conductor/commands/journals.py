"""`conductor journal ...`: look after a journal."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conductor.commands import add_run, write_out
from conductor.errors import ConductorError, printable
from conductor.head import read_head
from conductor.journal import Row, journal_path, not_held, read_journal, sqlite_note
from conductor.pit_interface import fold
from conductor.report import verify_journal

if TYPE_CHECKING:
    from conductor.commands import Commands


def register(commands: Commands) -> None:
    """Adds `journal` with its actions."""
    journal = commands.add_parser("journal", help="look after a journal")
    actions = journal.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify", help="check the hash chain and every output, and replay each observation, mask and call"
    )
    verify.add_argument(
        "--head", metavar="FILE", help="a head kept elsewhere (`run --heads DIR`): the journal must hold its row"
    )
    verify.set_defaults(handle=_verify)
    show = actions.add_parser("show", help="print the rows of a journal, a line each")
    show.set_defaults(handle=_show)
    export = actions.add_parser("export", help="write the verified rows of a journal as JSON lines")
    export.add_argument("--out", metavar="FILE", help="the file (default: standard output)")
    export.set_defaults(handle=_export)
    for parser in (verify, show, export):
        add_run(parser)


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    path = journal_path(arguments.run)
    verified = verify_journal(path)
    if arguments.head is not None:
        _compare(path, Path(arguments.head))
    left = sum(not folded.ended for folded in verified.runs)
    status = f"{left} of {len(verified.runs)} runs not ended; `resume` goes on" if left else "ended"
    console.print(
        f"{path}: {verified.last.seq + 1} rows, whole and replayed bit for bit, {status}; last hash {verified.last.hash}",
        soft_wrap=True,
        markup=False,
    )
    if note := sqlite_note():
        console.print(note, soft_wrap=True, markup=False)
    return 0


def _compare(path: Path, file: Path) -> None:
    """Raises ConductorError unless the journal holds the row that a head names."""
    head = read_head(file)
    if head is None:
        raise ConductorError(f"{file}: holds no head")
    for row in read_journal(path):
        if row.seq == head.seq and row.hash == head.hash:
            return
    raise not_held(path, head.seq, file)


def _brief(row: Row) -> str:
    """What is worth a line of a row's payload."""
    data = {key: value for key, value in row.data.items() if value not in ("", None)}
    if row.kind == "run":
        data = {key: data[key] for key in ("id", "strategy", "began") if key in data}
    return "  ".join(f"{key}={str(value)[:16]}" for key, value in data.items() if key not in ("observation", "mask"))


def _show(arguments: argparse.Namespace, console: Console) -> int:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("row", "run", "time s"):
        table.add_column(name, justify="right")
    table.add_column("kind")
    table.add_column("what", overflow="fold")
    unsolved = {}
    for row in read_journal(arguments.run):
        table.add_row(str(row.seq), str(row.run), f"{row.time / 1e6:.3f}", row.kind, escape(printable(_brief(row))))
        if row.kind == "end" and row.data["status"] != "solved":
            unsolved[row.run] = row.data["status"]
    console.print(table)
    for run, status in unsolved.items():
        with contextlib.suppress(ConductorError):  # of another Pit: its rows are all that there is to show
            view = fold(row for row in read_journal(arguments.run) if row.run == run).view
            console.print(f"run {run} {status}: {view.reason()}", soft_wrap=True, markup=False)
    return 0


def _export(arguments: argparse.Namespace, console: Console) -> int:
    lines = (json.dumps(row._asdict(), sort_keys=True) + "\n" for row in read_journal(arguments.run))
    if arguments.out is None:
        write_out(lines, "; name a file (--out FILE)")
        return 0
    try:
        with open(arguments.out, "x", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise ConductorError(f"{arguments.out}: cannot be written ({error.strerror}); name a new file") from error
    return 0

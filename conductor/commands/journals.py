"""`conductor journal ...`: look after a journal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from conductor.commands import add_run
from conductor.journal import journal_path
from conductor.report import verify_run

if TYPE_CHECKING:
    from conductor.commands import Commands


def register(commands: Commands) -> None:
    """Adds `journal` with its actions."""
    journal = commands.add_parser("journal", help="look after a journal")
    actions = journal.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify", help="check the hash chain and every output, and replay each observation, mask and call"
    )
    add_run(verify)
    verify.set_defaults(handle=_verify)


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    folded = verify_run(arguments.run)
    status = "ended" if folded.ended else "not ended; `resume` goes on with it"
    console.print(
        f"{journal_path(arguments.run)}: whole and replayed bit for bit, {status}; last hash {folded.last}", soft_wrap=True
    )
    return 0

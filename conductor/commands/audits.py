"""`conductor audit ...`: make the decisions of a run again, and tell them in words."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conductor import audit
from conductor.commands import add_run
from conductor.errors import printable

if TYPE_CHECKING:
    from conductor.commands import Commands

SHOWN = 12  # alternatives, unless all are asked for


def register(commands: Commands) -> None:
    """Adds `audit` with its actions."""
    parser = commands.add_parser("audit", help="check who decided what, or tell a decision in words")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="check the journal, and make every decision again")
    add_run(verify)
    verify.set_defaults(handle=_verify)
    explain = actions.add_parser("explain", help="what was seen, which alternatives there were, who would have done what")
    add_run(explain)
    explain.add_argument("decision", metavar="DECISION", type=int, nargs="?", help="1, 2, ...; without it all are listed")
    explain.add_argument("--all", action="store_true", help=f"every alternative, not only the {SHOWN} likeliest")
    explain.set_defaults(handle=_explain)


def _say(console: Console, text: str) -> None:
    text = textwrap.fill(
        printable(text), console.width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    found = audit.verify(arguments.run)
    again = ", ".join(f"{count} by {name}" for name, count in found.made_again.items()) or "none"
    _say(console, f"{found.decisions} decisions; made again with the same action: {again}")
    if found.close:
        _say(console, f"{found.close} by policy are too close to tell: this machine's arithmetic differs in the last bits")
    if found.unknown:
        _say(console, f"{found.unknown} by policy could not be made again: its bundle is not there")
    for text in found.missing:
        _say(console, text)
    return 0


def _explain(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.decision is None:
        for number, time, words, by in audit.decisions(arguments.run):
            _say(console, f"{number:5}  {time / 1e6:8.2f} s  {words}  ({by})")
        return 0
    told = audit.explain(arguments.run, arguments.decision)
    _say(console, f"decision {told.number} of {told.decisions}, at {told.time / 1e6:.2f} s: {told.words}")
    _say(console, f"by {told.maker}")
    table = Table("alternative", box=box.SIMPLE_HEAD)
    table.add_column("logit", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("who would take it", overflow="fold")
    shown = told.alternatives if arguments.all else told.alternatives[:SHOWN]
    shown += [row for row in told.alternatives if row.takers and row not in shown]
    for row in shown:
        logit = "" if row.logit is None else f"{row.logit:.3f}"
        chance = "" if row.probability is None else f"{row.probability:.1%}"
        table.add_row(escape(printable(row.words)), logit, chance, ", ".join(row.takers))
    console.print(table)
    if left := len(told.alternatives) - len(shown):
        _say(console, f"and {left} more; --all shows them")
    for place, values in told.seen.items():
        _say(console, f"{place}: " + ", ".join(f"{name} {value:.3g}" for name, value in values))
    dead = [f"{name} {value:.3g}" for name, value, low, high in told.outside if low == high == 0]
    live = [f"{name} {value:.3g} (from {low:.3g} to {high:.3g})" for name, value, low, high in told.outside if low or high]
    for texts, words in ((dead, "not as in training, where it was always 0"), (live, "not as in training")):
        if texts:
            _say(console, f"{words}: " + ", ".join(texts))
    return 0

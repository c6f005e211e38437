"""`conductor show`, `output`, `record`, `measure`: what a run did and gave, for people and as tables; what calls took."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.console import Console

from conductor.commands import add_run, write_out
from conductor.journal import read_run, run_folder
from conductor.measure import measure, print_figures
from conductor.pit_interface import fold
from conductor.record import record_run
from conductor.report import print_run, report_run
from conductor.run import output_of

if TYPE_CHECKING:
    from conductor.commands import Commands


def register(commands: Commands) -> None:
    """Adds `show`, `output`, `record` and `measure`."""
    show = commands.add_parser("show", help="print what a run did, from its journal")
    add_run(show)
    show.set_defaults(handle=_show)
    output = commands.add_parser("output", help="print what a task of a run gave, as JSON")
    add_run(output)
    output.add_argument("task", metavar="TASK", help="the task's id in the workflow")
    output.set_defaults(handle=_output)
    record = commands.add_parser("record", help="write the decisions of a run as a Parquet table, from its journal")
    add_run(record)
    record.add_argument("--out", metavar="FILE", required=True, help="the table, for example decisions.parquet")
    record.add_argument("--observations", action="store_true", help="with the observation and the mask of each decision")
    record.set_defaults(handle=_record)
    measured = commands.add_parser("measure", help="print what calls and loads took in some runs, beside the catalogue")
    measured.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run, or its journal; all of one system")
    measured.set_defaults(handle=_measure)


def _show(arguments: argparse.Namespace, console: Console) -> int:
    print_run(report_run(arguments.run), console)
    return 0


def _output(arguments: argparse.Namespace, console: Console) -> int:
    folded = fold(read_run(arguments.run))
    value = output_of(run_folder(arguments.run, folded.run), folded.view.outputs, arguments.task)
    write_out([json.dumps(value, indent=2, ensure_ascii=True) + "\n"])
    return 0


def _record(arguments: argparse.Namespace, console: Console) -> int:
    count = record_run(arguments.run, arguments.out, arguments.observations)
    console.print(f"{arguments.out}: {count} decisions", soft_wrap=True, markup=False)
    return 0


def _measure(arguments: argparse.Namespace, console: Console) -> int:
    print_figures(measure(arguments.runs), console)
    return 0

"""The command line of the conductor: run a workflow, go on with one, show or record what happened, verify a journal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conductor.bundle import Bundle, load_bundle
from conductor.decision_maker import STRATEGIES
from conductor.errors import ConductorError
from conductor.journal import journal_path
from conductor.orchestrator import RunResult, begin, resume
from conductor.record import record_run
from conductor.report import print_comparison, print_run, report_run, verify_run
from conductor.workflow import Workflow, load_workflow

_STYLES = {
    "failed": "red",
    "load_failed": "red",
    "finished": "green",
    "load": "cyan",
    "loaded": "cyan",
    "cancel": "yellow",
    "resume": "yellow",
}


class Display:
    """Prints what happens as it happens, over a bar that counts finished tasks (on a terminal)."""

    def __init__(self, console: Console, title: str, tasks: int | None) -> None:
        """`tasks`: how many there are; None if that is not known yet."""
        self._console = console
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._bar = self._progress.add_task("", total=tasks)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, kind: str, time: int, text: str) -> None:
        """An observer of `conductor.orchestrator`."""
        style = _STYLES.get(kind, "")
        self._console.print(
            f"{time / 1e6:8.2f} s  {kind:<11} {text}", style=style, markup=False, highlight=False, soft_wrap=True
        )
        if kind == "finished":
            self._progress.advance(self._bar)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conductor",
        description="Conduct a workflow of real functions with a trained policy.",
        epilog="Example: conductor run examples/code_forge/workflow.yaml --strategy critical_path",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a workflow to its end in a new folder")
    run.add_argument("file", metavar="FILE", help="the workflow, YAML")
    run.add_argument("--bundle", metavar="DIR", help="the exported policy; needed by the strategy adaptive")
    run.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="who decides: the bundle's policy (the default where a bundle is given), the critical-path rule (the default "
        "otherwise), or one call at a time",
    )
    run.add_argument(
        "--runs", metavar="DIR", default="runs", help="where the folder of the run is made (default: %(default)s)"
    )
    run.add_argument(
        "--compare", action="store_true", help="really run it under every strategy, one after the other, and compare"
    )
    go_on = commands.add_parser("resume", help="go on with a run whose conductor died or was interrupted")
    go_on.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")
    show = commands.add_parser("show", help="print what a run did, from its journal")
    show.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")
    record = commands.add_parser("record", help="write the decisions of a run as a Parquet table, from its journal")
    record.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")
    record.add_argument("--out", metavar="FILE", required=True, help="the table, for example decisions.parquet")
    record.add_argument("--observations", action="store_true", help="with the observation and the mask of each decision")
    journal = commands.add_parser("journal", help="look after a journal")
    verify = journal.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser(
        "verify", help="check the hash chain and every output, and replay each observation, mask and call"
    )
    verify.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")
    return parser


def _run_one(workflow: Workflow, strategy: str, bundle: Bundle | None, runs: str, console: Console) -> RunResult:
    with Display(console, strategy, len(workflow.spec.tasks)) as display:
        return begin(workflow, runs, bundle=bundle, strategy=strategy, observer=display)


def _run(arguments: argparse.Namespace, console: Console) -> int:
    workflow = load_workflow(arguments.file)
    bundle = load_bundle(arguments.bundle) if arguments.bundle else None
    strategy = arguments.strategy or ("adaptive" if bundle else "critical_path")
    chosen = [strategy]
    if arguments.compare:
        chosen += [name for name in STRATEGIES if name != strategy and (name != "adaptive" or bundle)]
    reports = []
    for name in chosen:
        if len(chosen) > 1:
            console.rule(name)
        result = _run_one(workflow, name, bundle, arguments.runs, console)
        reports.append(report_run(result.folder))
        print_run(reports[-1], console)
    if len(reports) > 1:
        print_comparison(reports, console)
    return 0 if all(report.status == "solved" for report in reports) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 solved, 1 the run ended otherwise, 2 a mistake (one sentence on stderr), 130 interrupted."""
    arguments = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if arguments.command == "run":
            return _run(arguments, console)
        if arguments.command == "resume":
            with Display(console, "resume", None) as display:
                result = resume(arguments.run, display)
            print_run(report_run(result.folder), console)
            return 0 if result.status == "solved" else 1
        if arguments.command == "show":
            print_run(report_run(arguments.run), console)
            return 0
        if arguments.command == "record":
            count = record_run(arguments.run, arguments.out, arguments.observations)
            console.print(f"{arguments.out}: {count} decisions", soft_wrap=True, markup=False)
            return 0
        folded = verify_run(arguments.run)
        status = "ended" if folded.ended else "not ended; `resume` goes on with it"
        console.print(
            f"{journal_path(arguments.run)}: whole and replayed bit for bit, {status}; last hash {folded.last}", soft_wrap=True
        )
        return 0
    except ConductorError as error:
        print(f"conductor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("conductor: interrupted; nothing recorded is lost, `conductor resume RUN` goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

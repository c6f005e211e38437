"""`conductor run`, `check`, `resume`, `stop-policy`: conduct a workflow to its end; take the policy out of it meanwhile."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conductor import guard
from conductor.advice import Advice
from conductor.bundle import load_bundle
from conductor.commands import add_run
from conductor.commands.bundles import add_trust, trust_of
from conductor.decision_maker import NEED_BUNDLE, STRATEGIES
from conductor.errors import ConductorError, printable
from conductor.orchestrator import begin, make_manager, resume_all
from conductor.report import print_comparison, print_run, report_run
from conductor.run import Observer, RunResult, instruments_of
from conductor.session import begin_all
from conductor.workflow import Workflow, load_workflow

if TYPE_CHECKING:
    from conductor.commands import Commands

_STYLES = {
    "failed": "red",
    "load_failed": "red",
    "finished": "green",
    "load": "cyan",
    "loaded": "cyan",
    "cancel": "yellow",
    "resume": "yellow",
    "guard": "yellow",
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
            f"{time / 1e6:8.2f} s  {kind:<11} {printable(text)}", style=style, markup=False, highlight=False, soft_wrap=True
        )
        if kind == "finished":
            self._progress.advance(self._bar)


def register(commands: Commands) -> None:
    """Adds `run`, `check`, `resume` and `stop-policy`."""
    run = commands.add_parser("run", help="run a workflow to its end in a new folder, or several at once")
    run.add_argument("files", metavar="FILE", nargs="+", help="the workflow, YAML; several share a journal and their workers")
    run.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help="the exported policy, folder or zip; needed by the strategies adaptive and calibrated",
    )
    run.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="who decides: the bundle's policy (the default where a bundle is given), its fitted rule, the critical-path rule "
        "(the default otherwise), or one call at a time",
    )
    run.add_argument(
        "--runs", metavar="DIR", default="runs", help="where the folder of the run is made (default: %(default)s)"
    )
    run.add_argument(
        "--shadow",
        metavar="BUNDLE",
        help="a second policy, asked at every decision without effect; `show` tells how often it agreed",
    )
    run.add_argument(
        "--compare", action="store_true", help="really run it under every strategy, one after the other, and compare"
    )
    check = commands.add_parser("check", help="check a workflow and make each of its instruments once, and run nothing")
    check.add_argument("files", metavar="FILE", nargs="+", help="the workflow, YAML")
    check.set_defaults(handle=_check)
    go_on = commands.add_parser("resume", help="go on with a run whose conductor died or was interrupted")
    add_run(go_on)
    for parser in (run, go_on):
        parser.add_argument(
            "--heads",
            metavar="DIR",
            help="a folder elsewhere that gets the number and hash of the journal's last row, so that a cut end is noticed",
        )
    add_trust(run)
    run.set_defaults(handle=_run)
    go_on.set_defaults(handle=_resume)
    stop = commands.add_parser("stop-policy", help="let the rule decide from now on in a run that is under way (or SIGUSR1)")
    add_run(stop)
    stop.add_argument("--undo", action="store_true", help="let the policy decide again (SIGUSR1 cannot be undone)")
    stop.set_defaults(handle=_stop_policy)


def _run_one(workflow: Workflow, advice: Advice, arguments: argparse.Namespace, console: Console) -> RunResult:
    with Display(console, advice.strategy, len(workflow.spec.tasks)) as display:
        return begin(
            workflow, arguments.runs, bundle=advice.bundle, strategy=advice.strategy, shadow=advice.shadow, observer=display,
            heads=arguments.heads,
        )  # fmt: skip


def _stop_at_signal() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: guard.STOP.set())


def _run(arguments: argparse.Namespace, console: Console) -> int:
    _stop_at_signal()
    workflows = [load_workflow(file) for file in arguments.files]
    bundle, shadow = (
        load_bundle(place, trust_of(arguments)) if place else None for place in (arguments.bundle, arguments.shadow)
    )
    strategy = arguments.strategy or ("adaptive" if bundle else "parallel")
    if len(workflows) > 1:
        return _run_many(workflows, Advice(strategy, bundle, shadow), arguments, console)
    chosen = [strategy]
    if arguments.compare:
        chosen += [name for name in STRATEGIES if name != strategy and (name not in NEED_BUNDLE or bundle)]
    reports = []
    for name in chosen:
        if len(chosen) > 1:
            console.rule(name)
        result = _run_one(workflows[0], Advice(name, bundle, shadow), arguments, console)
        reports.append(report_run(result.folder))
        print_run(reports[-1], console)
    if len(reports) > 1:
        print_comparison(reports, console)
    return 0 if all(report.status == "solved" for report in reports) else 1


def _check(arguments: argparse.Namespace, console: Console) -> int:
    for file in arguments.files:
        workflow = load_workflow(file)
        functions, models = instruments_of(workflow)
        with tempfile.TemporaryDirectory() as folder:
            manager = make_manager(workflow, Path(folder), None)
            try:
                levels = manager.check(functions, models, workflow.where)
            finally:
                manager.close()
        held = [
            f"sandbox {level}: {', '.join(sorted(name for name in levels if levels[name] == level))}"
            for level in sorted({*levels.values()})
        ]
        made = f"{len(workflow.spec.tasks)} tasks, {len(functions)} functions and {len(models)} models, which can all be made"
        console.print("; ".join([f"{file}: {made}", *held]), soft_wrap=True, markup=False, highlight=False)
    return 0


def _run_many(workflows: list[Workflow], advice: Advice, arguments: argparse.Namespace, console: Console) -> int:
    if arguments.compare:
        raise ConductorError("--compare runs one workflow under every strategy; name one FILE")
    with Display(console, advice.strategy, sum(len(workflow.spec.tasks) for workflow in workflows)) as display:

        def named(number: int) -> Observer:
            return lambda kind, time, text: display(kind, time, f"{number:03} {text}")

        observers = [named(number) for number in range(len(workflows))]
        results = begin_all(workflows, arguments.runs, advice, observers=observers, heads=arguments.heads)
    for result in results:
        print_run(report_run(result.folder), console)
    return 0 if all(result.status == "solved" for result in results) else 1


def _resume(arguments: argparse.Namespace, console: Console) -> int:
    _stop_at_signal()
    with Display(console, "resume", None) as display:
        results = resume_all(arguments.run, display, arguments.heads)
    for result in results:
        print_run(report_run(result.folder), console)
    return 0 if all(result.status == "solved" for result in results) else 1


def _stop_policy(arguments: argparse.Namespace, console: Console) -> int:
    file = guard.throw(arguments.run, undo=arguments.undo)
    text = "the policy decides again" if arguments.undo else f"the policy is asked no more; without {file} it decides again"
    unless = ", unless its conductor got SIGUSR1, which holds until it ends" if arguments.undo else ""
    console.print(f"{text}, from the next decision on{unless}", soft_wrap=True, markup=False)
    return 0

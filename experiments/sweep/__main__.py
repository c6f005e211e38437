"""Searches for good hyper-parameters: `python -m experiments.sweep level=11 trials=50 jobs=2`.

A trial's score is that on validation instances; test instances are never played. With `folder=` the command goes on with a
sweep that was stopped or killed, or adds processes to one that runs, also from another machine that shares the folder.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from experiments import cli
from experiments.errors import ExperimentError
from experiments.sweep import settings

if TYPE_CHECKING:
    from experiments.sweep.study import Study


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a sweep as Ctrl-C does."""

    code = 128 + signal.SIGTERM


def begin(arguments: settings.Arguments) -> Path:
    """The folder of a new sweep, or of the one that is gone on with. Raises ExperimentError if it cannot be either."""
    from experiments.sweep.study import TURN, alone

    def is_new(folder: Path) -> bool:
        return not folder.exists() or all(file.name == TURN for file in folder.iterdir())

    given = arguments.sweep.get("folder")
    folder = None if given is None else Path(given)
    if folder is not None and is_new(folder) and "level" not in arguments.training:
        raise ExperimentError(f"{folder}: holds no sweep; to begin one there, give level=")
    new = settings.define(arguments) if folder is None or is_new(folder) else None
    if folder is None:
        assert new is not None
        folder = settings.default_folder(new.base)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if new is not None and is_new(folder):
            settings.write_definition(folder, new)
            return folder
        stored = settings.read_definition(folder)
        settings.check_joins(stored, arguments, folder)
        if arguments.sweep.get("trials", stored.trials) != stored.trials:
            stored.trials = arguments.sweep["trials"]
            settings.write_definition(folder, stored)
    return folder


def sweep(arguments: list[str]) -> None:
    """Begins or joins a sweep, works on it with `jobs` processes, and writes what came out.

    Raises:
        ExperimentError: an argument is wrong, or all processes ended before the work was done.
        KeyboardInterrupt: Ctrl-C or SIGTERM, with a sentence that says how to go on.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ExperimentError("a sweep needs Optuna: python -m pip install 'function-quest[sweep]', in a checkout '.[sweep]'")
    from experiments.sweep.report import write_report
    from experiments.sweep.study import Study
    from experiments.sweep.worker import work

    sorted_arguments = settings.sort_arguments(arguments)
    jobs = settings.settings_of(sorted_arguments.sweep).jobs
    folder = begin(sorted_arguments)
    again = shlex.join(["python", "-m", "experiments.sweep", f"folder={folder}", f"jobs={jobs}"])
    study = Study(folder)
    base = study.definition.base
    print(
        f"sweep in {folder}: level {base['level']}, {len(study.finished())} of {study.wanted} trials are done, "
        f"{base['total_timesteps']:,} frames each; searched: {', '.join(study.definition.space)}",
        flush=True,
    )
    processes = [multiprocessing.get_context("spawn").Process(target=work, args=(str(folder),)) for _ in range(jobs)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    except KeyboardInterrupt as stop:
        raise type(stop)(f"interrupted, {_progress(study)}; to go on: {again}") from None
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()  # its trial is tried again when the sweep is gone on with
    finished = any(process.exitcode == 0 for process in processes)
    print(f"\n{write_report(study, finished, again)}", flush=True)
    if not finished:
        raise ExperimentError(f"all processes of the sweep ended early, {_progress(study)}; to go on: {again}")


def _progress(study: Study) -> str:
    return f"{len(study.finished())} of {study.wanted} trials are done"


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> None:
    """The command line."""
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        cli.show_help("sweep", __doc__ or "")
    cli.one_thread_per_process()
    signal.signal(signal.SIGTERM, _end)
    cli.guarded(lambda: sweep(sys.argv[1:]), settings.Keys, "interrupted before the sweep began")


if __name__ == "__main__":
    main()

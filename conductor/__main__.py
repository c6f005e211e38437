"""The command line of the conductor; `conductor.commands` has its commands, a module for each group."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import IO

from rich.console import Console

from conductor.commands import Handler, audits, bundles, journals, looking, running
from conductor.errors import ConductorError, Stopped, printable
from conductor.instruments.supervisor import close_to_others

GROUPS = (running, looking, journals, audits, bundles)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conductor",
        description="Conduct a workflow of real functions with a trained policy.",
        epilog="Example: conductor run examples/code_forge/workflow.yaml --strategy parallel",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.register(commands)
    return parser


def _open_streams() -> None:
    """Standard streams that were closed lead nowhere: no journal must come to be in their place. What the encoding of stdout
    does not hold is written as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises SystemExit once help was printed, BrokenPipeError or ConductorError where it cannot be, which argparse hides."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            return _parser().parse_args(argv)
    except SystemExit:
        try:
            print(text.getvalue(), end="", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ConductorError(_lost(error)) from error
        raise


def _lost(error: OSError) -> str:
    return f"standard output: cannot be written ({error.strerror})"


def _lead_nowhere(stream: IO[str]) -> None:
    """A stream that cannot be written any more goes nowhere from now on. Python itself writes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str) -> None:
    try:
        print(f"conductor: {text}", file=sys.stderr, flush=True)
    except OSError:
        _lead_nowhere(sys.stderr)


class _Console(Console):
    """One whose reader may go away (`| head`), or whose disk be full: a run goes on without, it is not there to be read."""

    def __init__(self, command: str) -> None:
        super().__init__(width=None if sys.stdout.isatty() else 140)
        self._runs = command in ("run", "resume")

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            self.on_broken_pipe()
            if not self._runs:
                raise ConductorError(_lost(error)) from error
            _complain(f"{_lost(error)}; the run goes on without")

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _lead_nowhere(sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 solved, 1 the run ended otherwise, 2 a mistake (one sentence on stderr), 130 interrupted,
    141 nobody read an export on, 143 stopped by SIGTERM. What a run prints has no part in it."""
    _open_streams()
    try:
        arguments = _parse(argv)
        close_to_others()  # the environment holds the secrets of all functions
        handle: Handler = arguments.handle
        return handle(arguments, _Console(arguments.command))
    except BrokenPipeError:  # what is written without the console
        return 128 + signal.SIGPIPE
    except Stopped as error:
        _complain(printable(str(error)))
        return 128 + signal.SIGTERM
    except ConductorError as error:
        _complain(printable(str(error)))
        return 2
    except OSError as error:  # a place that nobody thought of
        if error.filename is None:
            raise
        _complain(printable(f"{error.filename}: cannot be read or written ({error.strerror})"))
        return 2
    except KeyboardInterrupt as error:  # with its folder, if a run was under way
        goes_on = f"; nothing recorded is lost, `conductor resume {error}` goes on" if error.args else ""
        _complain(f"interrupted{goes_on}")
        return 130
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            _lead_nowhere(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())

"""The command line of the conductor; `conductor.commands` has its commands, a module for each group."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in GROUPS:
        group.register(commands)
    return parser


def _read_no_more() -> None:
    """Who reads the output has gone (`| head`): it goes nowhere from now on. Python itself writes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    """One whose reader may go away: the work goes on without, for a run is not there to be read."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _read_no_more()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 solved, 1 the run ended otherwise, 2 a mistake (one sentence on stderr), 130 interrupted,
    141 nobody read an export on, 143 stopped by SIGTERM."""
    arguments = _parser().parse_args(argv)
    close_to_others()  # the environment holds the secrets of all functions
    handle: Handler = arguments.handle
    try:
        return handle(arguments, _Console(width=None if sys.stdout.isatty() else 140))
    except BrokenPipeError:  # what is written without the console
        _read_no_more()
        return 128 + signal.SIGPIPE
    except Stopped as error:
        print(f"conductor: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except ConductorError as error:
        print(f"conductor: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # with its folder, if a run was under way
        goes_on = f"; nothing recorded is lost, `conductor resume {error}` goes on" if error.args else ""
        print(f"conductor: interrupted{goes_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The command line of the conductor; `conductor.commands` has its commands, a module for each group."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from conductor.commands import Handler, audits, bundles, journals, looking, running
from conductor.errors import ConductorError, Stopped, printable

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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 solved, 1 the run ended otherwise, 2 a mistake (one sentence on stderr), 130 interrupted,
    143 stopped by SIGTERM."""
    arguments = _parser().parse_args(argv)
    handle: Handler = arguments.handle
    try:
        return handle(arguments, Console(width=None if sys.stdout.isatty() else 140))
    except Stopped as error:
        print(f"conductor: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except ConductorError as error:
        print(f"conductor: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("conductor: interrupted; nothing recorded is lost, `conductor resume RUN` goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The commands of `python -m conductor`, a module for each group.

A group is a module with `register(commands)`: it adds its parsers and gives each `set_defaults(handle=...)`, a function of
(arguments, console) that returns the exit status. Its name goes into `conductor.__main__.GROUPS`, and nothing else changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from conductor.errors import ConductorError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # what `add_subparsers` gives
Handler = Callable[[argparse.Namespace, Console], int]


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument by which a command names a run that stands on disk."""
    parser.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")


def write_out(lines: Iterable[str], instead: str = "") -> None:
    """What a program is to read, on standard output, to the last byte; `instead`: what to do where that is closed.

    Raises:
        BrokenPipeError: nobody reads on.
        ConductorError: it cannot be written.
    """
    if sys.__stdout__ is None:
        raise ConductorError(f"standard output is closed{instead}")
    try:
        sys.stdout.writelines(lines)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConductorError(f"standard output: cannot be written ({error.strerror})") from error

"""The commands of `python -m conductor`, a module for each group.

A group is a module with `register(commands)`: it adds its parsers and gives each `set_defaults(handle=...)`, a function of
(arguments, console) that returns the exit status. Its name goes into `conductor.__main__.GROUPS`, and nothing else changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # what `add_subparsers` gives
Handler = Callable[[argparse.Namespace, Console], int]


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument by which a command names a run that stands on disk."""
    parser.add_argument("run", metavar="RUN", help="the folder of the run, or its journal")

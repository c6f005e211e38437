"""The kinds of error that a user of the conductor can cause or must know of."""

from __future__ import annotations


class ConductorError(Exception):
    """One sentence that names file, key, value and what would be right; the command line prints it and exits with 2."""


class DiskFull(ConductorError):
    """There is no room for what must be durable. Nothing of it was recorded; the same act may be tried again."""


class Stopped(ConductorError):
    """The conductor was asked to stop, and did so between two ticks: `resume` goes on."""


def printable(text: str) -> str:
    """One line that is safe for a terminal: names in a stranger's file may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)

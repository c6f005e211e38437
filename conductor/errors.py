"""The one kind of error that a user of the conductor can cause."""

from __future__ import annotations


class ConductorError(Exception):
    """One sentence that names file, key, value and what would be right; the command line prints it and exits with 2."""


def printable(text: str) -> str:
    """One line that is safe for a terminal: names in a stranger's file may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)

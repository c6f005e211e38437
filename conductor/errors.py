"""The one kind of error that a user of the conductor can cause."""

from __future__ import annotations


class ConductorError(Exception):
    """One sentence that names file, key, value and what would be right; the command line prints it and exits with 2."""

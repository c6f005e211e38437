"""The one exception a command of this package raises for a mistake that its user can correct."""

from __future__ import annotations


class ExperimentError(Exception):
    """One clear sentence that names the key or file, the value and what would be right."""

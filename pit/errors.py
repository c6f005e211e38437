"""The one exception that the Pit raises for what a user can cause."""

from __future__ import annotations


class PitError(ValueError):
    """A system, workflow or snapshot that the Pit refuses; the message names file, key, value and remedy."""

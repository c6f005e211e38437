"""The one exception that the game raises for what a user can cause."""

from __future__ import annotations

from pit.errors import PitError


class FQError(PitError):
    """A level, instance, option or setting that the game refuses; the message says what would be right."""

"""Shapes of outputs: whether what a variant gives has suddenly another form, as after a change of somebody's API."""

from __future__ import annotations

from typing import Any

STEADY = 5  # outputs of one shape in a row, from which another one is news


def shape(value: Any) -> Any:
    """The form of a JSON value: its kind, of an object the kinds of its fields, of a list those of what stands in it."""
    if isinstance(value, dict):
        return tuple(sorted((str(key), shape(x)) for key, x in value.items()))
    if isinstance(value, list):
        return ("list", *sorted({shape(x) for x in value}, key=repr))
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


class Shapes:
    """The shapes that the latest outputs of each variant had. Forgotten when the conductor is started again."""

    def __init__(self) -> None:
        self._steady: dict[int, tuple[str, int]] = {}  # row of a variant -> (shape, how often in a row)

    def changed(self, row: int, output: Any) -> bool:
        """Takes note of one more output; whether it ends a long row of outputs that all had another shape."""
        new = repr(shape(output))
        old, count = self._steady.get(row, (new, 0))
        self._steady[row] = (new, count + 1 if new == old else 1)
        return new != old and count >= STEADY

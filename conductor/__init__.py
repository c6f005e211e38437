"""The conductor: the production runtime that lets an exported policy conduct real functions over the same Pit.

`Conductor` is imported when it is asked for, so that a worker process (`conductor.instruments.worker`) starts in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conductor.session import Conductor as Conductor

__all__ = ["Conductor"]


def __getattr__(name: str) -> Any:
    if name == "Conductor":
        from conductor.session import Conductor

        return Conductor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

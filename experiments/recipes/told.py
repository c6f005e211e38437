"""What is written down of a recipe's phases in a run folder; read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.files import read_json

FOLDER = "recipe"
Facts = dict[str, Any]


def told(run: Path) -> list[Facts]:
    """What there is to say of each phase of a run that is done, in order; nothing for `recipe=plain`."""
    return [read_json(path) for path in sorted((run / FOLDER).glob("*.json"))]


def lines(phases: list[Facts]) -> str:
    """The phases as a list for a report, each with its CPU seconds; nothing if there are none."""
    return "".join(f"\n* {facts['name']}: {facts['line']} ({facts['cpu_seconds']:.1f} CPU s)" for facts in phases)

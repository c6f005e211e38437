"""The decisions of a run as a table (`pit/record.py` has its columns), from the run's journal.

The journal is folded, and so verified, as for a report; a double of the Pit takes the same rows and notes what they brought
about. Nothing of the game is known here: the columns that belong to it stay empty.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from conductor.errors import ConductorError
from conductor.journal import Row, read_run
from conductor.pit_interface import PitInterface, fold
from pit import layout, record
from pit.errors import PitError
from pit.handle import Event
from pit.trace import Trace, names_of


class _Decisions:
    """Collects the rows of decisions while a journal is folded."""

    def __init__(self) -> None:
        self.done: list[record.Row] = []
        self._open = False

    def __call__(self, row: Row, view: PitInterface) -> None:
        data = row.data
        if row.kind == "run":
            memory = np.frombuffer(view.pit.snapshot(), np.uint8).copy()
            self._trace = Trace(memory, names_of(view.pit))
            self._exposure = data["exposure"]
            self._about: dict[str, Any] = {
                "source": "production",
                "run": data["id"],
                **dict.fromkeys(("level", "split", "instance")),
                "workflow": view.workflow.name,
                "player": data["strategy"],
            }
        elif row.kind == "event":
            self._trace.advance(row.time)
            kind, error = layout.EVENTS.index(data["kind"]), layout.ERRORS.index(data["error"])
            self._trace.apply(
                Event(kind, data["subject"], error, data["elapsed"], data["quality"], data["size"], data["price"])
            )
        elif row.kind == "action":
            self._trace.advance(row.time)
            before = self.close()
            self._trace.begin(before, data["action"], self._exposure, **self._about, by=data["by"], note=data["note"])
            self._trace.act(data["action"])
            self._open = True
        elif row.kind == "end":
            self._trace.advance(row.time)

    def close(self) -> record.Row:
        """Ends the row that is open, if one is; the state now."""
        state = self._trace.state()
        if self._open:
            self.done.append(self._trace.finish(state))
        return state


def decisions(place: str | os.PathLike[str]) -> list[record.Row]:
    """The rows of a run's decisions in order; the last one ends with the run, or where its journal ends.

    Raises:
        ConductorError: the journal is not whole or replays differently.
    """
    collected = _Decisions()
    fold(read_run(place), collected)
    collected.close()
    return collected.done


def record_run(place: str | os.PathLike[str], out: str | os.PathLike[str], observations: bool = False) -> int:
    """Writes a run's decisions as Parquet and returns how many there are; `observations` as `pit.record.columns`.

    Raises:
        ConductorError: as `decisions`, or pyarrow is missing, or the file exists or cannot be written.
    """
    if os.path.isfile(out):
        raise ConductorError(f"{out}: exists already and is not overwritten; name a new file")
    try:
        record.arrow_schema(observations)  # pyarrow is missed before the journal is read
        return record.write(out, decisions(place), observations)
    except PitError as error:
        raise ConductorError(str(error)) from error

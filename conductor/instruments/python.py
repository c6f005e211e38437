"""The python instrument: a function `module:function` that takes a Job, called in a persistent worker process."""

from __future__ import annotations

from typing import Any

from conductor.instruments.base import Instrument, Job, resolve_callable


class PythonInstrument(Instrument):
    """`{kind: python, call: "module:function"}`; modules are found beside the workflow file first."""

    def __init__(self, *, call: str) -> None:
        self._function = resolve_callable(call)

    def call(self, job: Job) -> Any:
        """What the function returns for the job."""
        return self._function(job)

"""How long a conductor can wait, and with how many open files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.orchestrator import begin
from conductor.workflow import load_workflow
from tests.conductor.test_many import steps

Write = Callable[[dict[str, Any]], Path]
FREE = {"processes": None, "spare": None}  # whose supervisor need not look at anything for as long as the call may take


@pytest.mark.parametrize(
    "function",
    [
        {"kind": "python", "call": "work:add", "seconds": 3e6},
        {"kind": "python", "call": "work:add", "seconds": 1e308},
        {"kind": "command", "argv": ["sleep", "0.1"], "seconds": 3e6, "limits": FREE},
    ],
)
def test_time_limits_longer_than_any_wait(write_workflow: Write, function: dict[str, Any]) -> None:
    """No call of the system waits for more than 2^31 milliseconds, some 24.8 days."""
    workflow = steps(1)
    workflow["instruments"]["functions"]["plain"] = function
    path = write_workflow(workflow)
    assert begin(load_workflow(path), path.parent / "runs", strategy="parallel").status == "solved"

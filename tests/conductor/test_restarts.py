"""Whole runs in which the conductor restarts after every tick; `FQ_RESTART=1 pytest tests/conductor` does it to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor import run
from conductor.errors import ConductorError
from conductor.orchestrator import begin
from conductor.pit_interface import event_payload
from conductor.workflow import load_workflow
from tests.conductor import restarts
from tests.conductor.helpers import small_workflow

# The tests themselves, once more: workflows that come from threads, every verb, and a store that is too small.
from tests.conductor.test_many import test_from_threads_and_event_loops as test_from_threads_and_event_loops
from tests.conductor.test_tiers import test_a_run_deletes_what_it_needs_no_more as test_a_run_deletes_what_it_needs_no_more
from tests.conductor.test_verbs import (
    test_a_hedge_wins_and_the_straggler_is_ended as test_a_hedge_wins_and_the_straggler_is_ended,
)

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def restarting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    counts = restarts.install(monkeypatch)
    yield
    assert counts["restarts"] >= 5 and counts["from a snapshot"] > 2  # a slow conductor has few ticks, in which much happens


def test_a_difference_would_be_noticed(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that says something else than what happened: what comes back is not what was thrown away."""
    path, seen = write_workflow(small_workflow()), [0]

    def wrong(*arguments: Any) -> dict[str, Any]:
        payload = event_payload(*arguments)
        seen[0] += payload["kind"] == "finished"
        return {**payload, "elapsed": payload["elapsed"] + 1} if seen[0] == 3 else payload

    monkeypatch.setattr(run, "event_payload", wrong)
    with pytest.raises(ConductorError, match="observation in the replay is not the recorded one"):
        begin(load_workflow(path), path.parent / "runs", strategy="parallel")

"""The Pit as Python sees it."""

from __future__ import annotations

from pit import layout as L
from pit.handle import Event, Pit
from pit.spec import WorkflowSpec


def test_a_long_advance_says_no_more_at_once_than_there_is_room_for() -> None:
    """A call times out and falls back, again and again: hours of that in one advance, and the same as step by step."""
    functions = {"f": {name: {"pool": name, "seconds": 1.0} for name in ("standard", "lite")}}
    pools = {"standard": {"places": 1}, "lite": {"places": 1}}
    system = {"verbs": ["lite", "standard"], "pools": pools, "functions": functions, "time_out": 1.5, "fallback": True}
    spec = WorkflowSpec.model_validate({"system": system, "tasks": [{"id": "a", "function": "f"}]})
    said = []
    for steps in (1, 3600):
        pit = Pit(spec)
        pit.apply(Event(L.ARRIVE, 0))
        pit.act(L.STANDARD)
        for k in range(steps):
            pit.advance((k + 1) * 3600 * 10**6 // steps)
        said.append((pit.commands(), pit.snapshot()))
    assert len(said[0][0]) == 1 + 2 * 3600 / 1.5 and said[0] == said[1]

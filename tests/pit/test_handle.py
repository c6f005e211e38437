"""The Pit as Python sees it."""

from __future__ import annotations

import pytest

from pit import layout as L
from pit.errors import PitError
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


def stream(*functions: str) -> list[WorkflowSpec]:
    """Workflows of one task with the same content, which calls a function each."""
    system = {"pools": {"p": {"places": 1}}, "functions": {name: {"standard": {"pool": "p", "seconds": 1.0}} for name in "fg"}}
    tasks = [[{"id": "a", "function": name, "content": 7}] for name in functions]
    return [WorkflowSpec.model_validate({"system": system, "tasks": of}) for of in tasks]


def test_one_content_is_a_result_of_one_function_in_all_workflows() -> None:
    """Or a task would take over what another function made."""
    first, *then = stream("f", "f", "f")
    assert Pit(first, then=then).task_ids == ["0/a", "1/a", "2/a"]
    first, *then = stream("f", "f", "g")
    with pytest.raises(PitError, match=r"task 'a' of workflow 2 .* content 7 stands for a result of 'f' in workflow 0"):
        Pit(first, then=then)

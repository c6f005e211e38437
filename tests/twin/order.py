"""Hidden order, in plain Python: the plans of a goal and what is useful for it, as `fq_env/README.md` says it."""

from __future__ import annotations

from typing import Any


def alternatives(needs: list[Any]) -> list[set[str]]:
    """What a function needs, as sets of which one is enough: from a list of names, or of lists of names."""
    if all(isinstance(x, str) for x in needs):
        return [set(needs)]
    return [{x} if isinstance(x, str) else set(x) for x in needs]


def plans_of(goal: str, needs: dict[str, list[set[str]]]) -> list[set[str]]:
    """The sets that contain the goal and, for each function in them, all of one alternative; the smallest of them alone."""
    found: list[set[str]] = []
    todo = [{goal}]
    while todo:
        plan = todo.pop()
        lacking = next((f for f in sorted(plan) if not any(x <= plan for x in needs.get(f, [set()]))), None)
        if lacking is None:
            found.append(plan)
        else:
            todo += [plan | x for x in needs[lacking]]
    smallest = [plan for plan in found if not any(other < plan for other in found)]
    return [plan for k, plan in enumerate(smallest) if plan not in smallest[:k]]


def useful_for(goal: str, order: Any, needs: dict[str, list[set[str]]]) -> set[str]:
    """All that is in a plan, what the useful prefer or need softly, and the plans of that."""
    useful, todo = set[str](), [goal]
    while todo:
        new = set[str]().union(*plans_of(todo.pop(), needs)) - useful
        useful |= new
        todo += [x for f in new for x in (*order.prefers.get(f, []), *order.soft.get(f, []))]
    return useful

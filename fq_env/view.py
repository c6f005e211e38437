"""One environment in readable form, for people: names instead of indices, seconds instead of microseconds.

It reads the engine's memory and changes nothing; built in Python, slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pit import state
from pit.layout import COPY_STATES, N_VARIANTS, NEVER, ON, OUTCOMES, STANDARD, STATUSES, TASK_STATES, VERBS

if TYPE_CHECKING:
    from fq_env.engine import Engine


def pit_view(engine: Engine, i: int) -> dict[str, Any]:
    """Environment i as plain dictionaries, times in seconds.

    `now`, `horizon` (None without one), `status`, `outcome` (of the last action), `warnings`, `spent`; `reachable` and
    `phi0` (the best total now and at the start), `episode` (the score and its parts once it is over, else None); and as
    lists of dictionaries `pools` (with their `copies`), `tasks`, `calls` in flight, `slots`.
    """
    system, memory, block = engine.levels[i].system, engine.memory[i], engine.block
    hot, world = block.hot(memory)[0], block.hidden(memory)[0]
    functions, models = list(system.functions), list(system.models)
    tasks = block.rows(memory, "task_at", state.TASK, int(hot["n_tasks"]))
    variants = block.rows(memory, "variant_at", state.VARIANT, N_VARIANTS * len(functions))
    calls = block.rows(memory, "call_at", state.CALL, block.places)
    copies = block.rows(memory, "copy_at", state.COPY, int(hot["n_copies"]))
    copies = copies[copies["state"] != 0]
    ended = hot["status"] != ON or engine.truncated[i]
    episode = engine.episodes[i]
    return {
        "now": seconds_of(hot["now"]),
        "horizon": None if hot["horizon"] >= NEVER else seconds_of(hot["horizon"]),
        "status": STATUSES[hot["status"]],
        "outcome": OUTCOMES[hot["outcome"]],
        "warnings": int(hot["warnings"]),
        "spent": float(hot["spent"]) / 1e6,
        "reachable": float(world["phi"]),
        "phi0": float(world["phi0"]),
        "episode": dict(zip(episode.dtype.names or (), episode.item(), strict=True)) if ended else None,
        "pools": [
            {
                "name": name,
                "places": int(pool["places"]),
                "busy": int(pool["busy"]),
                "copies": [
                    {"model": models[c["model"]], "state": COPY_STATES[c["state"]], "users": int(c["users"])}
                    for c in copies[copies["pool"] == p]
                ],
            }
            for p, (name, pool) in enumerate(zip(system.pools, hot["pools"], strict=False))
        ],
        "tasks": [
            {
                "index": k,
                "function": functions[t["function"]],
                "state": TASK_STATES[t["state"]],
                "required": bool(t["required"]),
                "attempts": int(t["attempts"]),
                "quality": float(t["quality"]),
            }
            for k, t in enumerate(tasks)
        ],
        "calls": [
            {
                "id": int(c["id"]),
                "task": int(c["task"]),
                "function": functions[c["function"]],
                "variant": VERBS[c["variant"]],
                "start": None if c["start"] < 0 else seconds_of(c["start"]),
                "expected_end": seconds_of(c["expected_end"]),
            }
            for c in np.sort(calls[calls["id"] >= 0], order="id")
        ],
        "slots": [
            {
                "slot": g,
                "function": functions[tasks[slot["head"]]["function"]],
                "members": int(slot["count"]),
                "optional": not tasks[slot["head"]]["required"],
                "held": bool(tasks[slot["head"]]["hold_until"] > 0),
                "duration": estimate(tasks[slot["head"]], variants),
            }
            for g, slot in enumerate(hot["slots"][: hot["n_slots"]])
        ],
    }


def seconds_of(microseconds: Any) -> float:
    """Microseconds as seconds."""
    return float(microseconds) / 1e6


def estimate(task: np.void, variants: np.ndarray) -> float:
    """How long the task's standard variant is expected to take, seconds."""
    return seconds_of(task["base"][STANDARD] * variants[N_VARIANTS * int(task["function"]) + STANDARD]["ratio"])

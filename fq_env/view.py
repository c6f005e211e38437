"""One environment in readable form, for people: names instead of indices, seconds instead of microseconds.

It reads the engine's memory and changes nothing; built in Python, slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pit import state
from pit.layout import (
    COPY_STATES,
    GLOBAL_ACTIONS,
    HELD,
    IDLE,
    LOADING,
    N_VARIANTS,
    N_VERBS,
    NEVER,
    ON,
    OUTCOMES,
    QUEUED,
    STANDARD,
    STATUSES,
    TASK_STATES,
    VERBS,
    WAIT,
)

if TYPE_CHECKING:
    from fq_env.engine import Engine

OPEN = ("ready", "running")


class Memory:
    """The tables of one environment, as views into the engine's memory."""

    def __init__(self, engine: Engine, i: int) -> None:
        memory, block = engine.memory[i], engine.block
        self.level = engine.levels[i]
        self.hot, self.world = block.hot(memory)[0], block.hidden(memory)[0]
        self.functions, self.models = list(self.level.system.functions), list(self.level.system.models)
        self.tasks = block.rows(memory, "task_at", state.TASK, int(self.hot["n_tasks"]))
        links = int(self.tasks["pred_to"].max(initial=0))
        self.links = block.rows(memory, "pred_at", state.LINK, links)
        self.created = block.rows(memory, "artifact_at", state.ARTIFACT, len(self.tasks))["created"]
        self.flows = block.rows(memory, "flow_at", state.FLOW, int(self.hot["n_flows"]))
        self.variants = block.rows(memory, "variant_at", state.VARIANT, N_VARIANTS * len(self.functions))
        self.model_rows = block.rows(memory, "model_at", state.MODEL, len(self.models))
        calls = block.rows(memory, "call_at", state.CALL, block.places)
        self.calls = np.sort(calls[calls["id"] >= 0], order="id")
        copies = block.rows(memory, "copy_at", state.COPY, int(self.hot["n_copies"]))
        self.copies = copies[copies["state"] != IDLE]
        self.now = float(self.hot["now"])

    def inputs(self, k: int, soft: bool) -> list[int]:
        """The tasks whose output task k needs, or (soft) can use."""
        task = self.tasks[k]
        links = self.links[task["pred_from"] : task["pred_to"]]
        return [int(link["task"]) for link in links if bool(link["soft"]) == soft]


def pit_view(engine: Engine, i: int) -> dict[str, Any]:
    """Environment i as plain dictionaries, times in seconds.

    `level` (title), `now`, `deadline` and `horizon` (None without one), `status`, `outcome` (of the last action), `last` (the
    last action, None before the first), `news` (calls that ended at this very moment), `warnings`, `spent`, `money` (None
    without a limit); `reachable` and `phi0` (the best total now and at the start), `episode` (the score and its parts once
    it is over, else None); `order_hidden`, `held` (functions whose outcome is held); `stream` (None, or whether more workflows
    may come); and as lists of dictionaries `workflows` that have arrived, `pools` (with their `copies`), `tasks`, `calls` in
    flight, `slots`.
    """
    m = Memory(engine, i)
    hot, world = m.hot, m.world
    tasks = task_rows(m)
    ended = hot["status"] != ON or engine.truncated[i]
    episode = engine.episodes[i]
    return {
        "level": f"Level {m.level.number}: {m.level.title}",
        "now": seconds_of(hot["now"]),
        "deadline": None if hot["deadline"] >= NEVER else seconds_of(hot["deadline"]),
        "horizon": None if hot["horizon"] >= NEVER else seconds_of(hot["horizon"]),
        "status": STATUSES[hot["status"]],
        "outcome": OUTCOMES[hot["outcome"]],
        "last": last_action(m, int(engine._actions[i])) if world["steps"] > 0 else None,
        "news": news(m),
        "warnings": int(hot["warnings"]),
        "spent": float(hot["spent"]) / 1e6,
        "money": float(hot["money"]) / 1e6 if hot["money"] > 0 else None,
        "reachable": float(world["phi"]),
        "phi0": float(world["phi0"]),
        "episode": dict(zip(episode.dtype.names or (), episode.item(), strict=True)) if ended else None,
        "order_hidden": bool(hot["order_hidden"]),
        "held": held(m),
        "stream": bool(hot["stream_open"]) if hot["stream"] else None,
        "workflows": [
            {
                "weight": float(w["weight"]),
                "arrived": seconds_of(w["arrived"]),
                "ended": None if w["ended"] >= NEVER else seconds_of(w["ended"]),
                "deferred": bool(w["deferred"]),
                "tasks": list(range(w["first"], w["last"])),
            }
            for w in m.flows
        ],
        "pools": [pool_row(m, p, name) for p, name in enumerate(m.level.system.pools)],
        "tasks": tasks,
        "calls": [call_row(m, c) for c in m.calls],
        "slots": [
            {
                "slot": g,
                "head": int(slot["head"]),
                "function": m.functions[m.tasks[slot["head"]]["function"]],
                "members": int(slot["count"]),
                "optional": not m.tasks[slot["head"]]["required"],
                "held": bool(m.tasks[slot["head"]]["mark"] == HELD),
                "duration": estimate(m.tasks[slot["head"]], m.variants),
            }
            for g, slot in enumerate(hot["slots"][: hot["n_slots"]])
        ],
    }


def task_rows(m: Memory) -> list[dict[str, Any]]:
    """The tasks: where they stand, what they wait for (`after`, `soft`: task indices), whether they make the critical path."""
    critical = critical_path(m)
    return [
        {
            "index": k,
            "function": m.functions[t["function"]],
            "state": TASK_STATES[t["state"]],
            "required": bool(t["required"]),
            "attempts": int(t["attempts"]),
            "quality": float(t["quality"]),
            "after": m.inputs(k, soft=False),
            "soft": m.inputs(k, soft=True),
            "held": bool(t["mark"] == HELD),
            "queued": bool(t["mark"] == QUEUED),
            "critical": k in critical,
        }
        for k, t in enumerate(m.tasks)
    ]


def critical_path(m: Memory) -> set[int]:
    """The longest estimated path through what is left, from the open task of largest rank on; empty where ranks are hidden."""
    ranks, states = m.tasks["rank"], [TASK_STATES[s] for s in m.tasks["state"]]
    open_tasks = [k for k, s in enumerate(states) if s in OPEN]
    if not open_tasks or not ranks.any():
        return set()
    followers: dict[int, list[int]] = {}
    for k in range(len(m.tasks)):
        for j in m.inputs(k, soft=False):
            followers.setdefault(j, []).append(k)
    path = [max(open_tasks, key=lambda k: float(ranks[k]))]
    while path[-1] in followers:
        path.append(max(followers[path[-1]], key=lambda k: float(ranks[k])))
    return set(path)


def held(m: Memory) -> list[str]:
    """Hidden order: the functions whose outcome is held now, from the start or by a call, and not spoiled since."""
    have = int(m.world["have"])
    return [name for f, name in enumerate(m.functions) if m.hot["order_hidden"] and have >> f & 1]


def pool_row(m: Memory, p: int, name: str) -> dict[str, Any]:
    """A pool: its places, memory, tokens, back-off, what it holds, and which models of this workflow it does not hold."""
    pool = m.hot["pools"][p]
    budget = m.hot["budgets"][pool["budget"]] if pool["budget"] >= 0 else None
    own = m.copies[m.copies["pool"] == p]
    used = {N_VARIANTS * f + v for f in set(m.tasks["function"].tolist()) for v in range(N_VARIANTS)}
    rows = [row for r, row in enumerate(m.variants) if r in used and row["usable"] and row["pool"] == p and row["model"] >= 0]
    loaded = {int(c["model"]) for c in own if COPY_STATES[c["state"]] != "cooldown"}
    limited = pool["period"] > 0
    credit = min(float(pool["full"]), float(pool["credit"]) + m.now - float(pool["credited"]))
    return {
        "name": name,
        "places": int(pool["places"]),
        "busy": int(pool["busy"]),
        "queued": int(pool["queued"]),
        "memory": None if budget is None else {"used": int(budget["used"]), "capacity": int(budget["capacity"])},
        "tokens": credit / float(pool["period"]) if limited else None,
        "burst": float(pool["full"]) / float(pool["period"]) if limited else None,
        "closed_for": max(0.0, seconds_of(pool["closed_until"]) - seconds_of(m.now)),
        "copies": [copy_row(m, c) for c in own],
        "cold": [m.models[k] for k in sorted({int(row["model"]) for row in rows} - loaded)],
    }


def copy_row(m: Memory, c: np.void) -> dict[str, Any]:
    """A copy of a model; while it loads, how far it is expected to be (0 to 1) and for how long yet."""
    left = max(0.0, float(c["expected_loaded"]) - m.now) if c["state"] == LOADING else None
    return {
        "model": m.models[c["model"]],
        "state": COPY_STATES[c["state"]],
        "users": int(c["users"]),
        "serves": int(m.model_rows[c["model"]]["serves"]),
        "progress": None if left is None else 1 - min(1.0, left / max(1.0, float(c["load_est"]))),
        "left": None if left is None else left / 1e6,
    }


def call_row(m: Memory, c: np.void) -> dict[str, Any]:
    """A call in flight; `progress` is the share of its expected duration that has passed, 0 while its model loads."""
    begun = c["start"] >= 0
    return {
        "id": int(c["id"]),
        "task": int(c["task"]),
        "function": m.functions[c["function"]],
        "variant": VERBS[c["variant"]],
        "pool": list(m.level.system.pools)[c["pool"]],
        "units": int(c["units"]),
        "also": None if c["also"] < 0 else list(m.level.system.pools)[c["also"]],  # the second pool of a gang
        "also_units": int(c["also_units"]),
        "model": None if c["model"] < 0 else m.models[c["model"]],
        "start": seconds_of(c["start"]) if begun else None,
        "expected_end": seconds_of(c["expected_end"]),
        "progress": min(1.0, (m.now - float(c["start"])) / max(1.0, float(c["est"]))) if begun else 0.0,
    }


def news(m: Memory) -> list[dict[str, Any]]:
    """The calls that ended at this very moment, as far as the state tells: tasks just done, or ready again just now."""
    found = []
    for k, t in enumerate(m.tasks):
        done = TASK_STATES[t["state"]] == "done" and m.created[k] == m.hot["now"]
        failed = TASK_STATES[t["state"]] == "ready" and t["attempts"] > 0 and t["ready_time"] == m.hot["now"]
        if (done or failed) and m.hot["now"] > m.hot["t0"]:
            found.append({"task": k, "function": m.functions[t["function"]], "ok": bool(done)})
    return found


def last_action(m: Memory, action: int) -> dict[str, Any]:
    """The last action: its `verb` and, for a start, the `task` that it began (None where the state does not tell)."""
    if not 0 <= action < WAIT:
        known = WAIT <= action < WAIT + len(GLOBAL_ACTIONS)
        return {"verb": GLOBAL_ACTIONS[action - WAIT] if known else "unknown", "task": None}
    verb = action % N_VERBS
    if verb >= N_VARIANTS or OUTCOMES[m.hot["outcome"]] == "blocked":
        return {"verb": VERBS[verb], "task": None}
    newest = [int(c["task"]) for c in m.calls if c["id"] == m.hot["next_call"] - 1 and c["variant"] == verb]
    if not newest and m.hot["all_places"] == 1:  # it has ended already, and nothing else can have
        newest = [ended["task"] for ended in news(m)]
    return {"verb": VERBS[verb], "task": newest[0] if newest else None}


def seconds_of(microseconds: Any) -> float:
    """Microseconds as seconds."""
    return float(microseconds) / 1e6


def estimate(task: np.void, variants: np.ndarray) -> float:
    """How long the task's standard variant is expected to take, seconds."""
    return seconds_of(task["base"][STANDARD] * variants[N_VARIANTS * int(task["function"]) + STANDARD]["ratio"])

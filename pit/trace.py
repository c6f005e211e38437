"""Follows one Pit and tells its decisions as rows of the record (`pit/record.py`): states, operations and what they took.

The rows tell the Pit's own state, whatever the player was shown. What stands here knows no player, no world and no journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pit import layout, state
from pit.compiled import announce
from pit.handle import Event, Pit
from pit.interface import ACT, ADVANCE, APPLY, DUE, OBSERVE, TIMER, drive
from pit.observation import score_parts
from pit.record import Row


class Names(NamedTuple):
    """What stands behind a Pit's indices; `tasks` only where tasks have names."""

    functions: list[str]
    pools: list[str]
    models: list[str]
    memories: list[str]
    tasks: list[str] | None = None


def names_of(pit: Pit) -> Names:
    """The names of a Pit that has a workflow."""
    memories = list(pit.workflow.system.memory)
    return Names(pit.function_names, pit.pool_names, pit.model_names, memories, pit.task_ids)


def _name(names: Sequence[str], index: int) -> str | None:
    return None if index < 0 else names[index]


@dataclass
class Trace:
    """A Pit's double in memory of its own, which does what the Pit does and notes what comes of it.

    Give it every `act`, `advance` and `apply` of the Pit, `begin` before an `act` and `finish` before the next one. Nothing is
    derived: operations and busy places are noted at each timer and event.

    Args:
        memory: a copy of the Pit's memory, uint8; it is changed.
        names: what stands behind its indices.
    """

    memory: np.ndarray
    names: Names

    def __post_init__(self) -> None:
        announce("drive")
        self.address = self.memory.ctypes.data
        self.hot = self.memory[: state.PIT.itemsize].view(state.PIT)
        self._event = np.zeros(1, state.EVENT)
        self._observation = np.zeros(layout.N_OBSERVATION, np.float32)
        self._mask = np.zeros(layout.N_ACTIONS, np.uint8)
        self._decision = -1
        self._row: Row = {}
        self._clear()

    def _clear(self) -> None:
        self._operations: list[Row] = []
        self._events = 0
        self._busy = np.zeros(len(self.names.pools), np.int64)  # place-us

    @property
    def now(self) -> int:
        """us since the run began."""
        return int(self.hot["now"][0])

    # ------------------------------------------------------------------ what the Pit does
    def act(self, action: int) -> None:
        """One decision, 0..127."""
        self._do(ACT, action)

    def advance(self, t: int) -> None:
        """The clock goes to t (us), from timer to timer."""
        end = max(t, self.now)
        reached = -1
        while reached < end:
            reached = min(end, max(self.now, self.next_timer()))
            self._busy += self._pools()["busy"].astype(np.int64) * (reached - self.now)
            self._do(ADVANCE, reached)

    def apply(self, event: Event) -> bool:
        """One event; False if it did not fit the state and was ignored."""
        self._event[0] = tuple(event)
        applied = bool(self._do(APPLY))
        self._events += applied
        return applied

    def next_timer(self) -> int:
        """us of the next timer, `NEVER` if none."""
        return self._do(TIMER)

    def decision_due(self) -> bool:
        """Whether an action is wanted now (or the run has ended)."""
        return bool(self._do(DUE))

    def _do(self, operation: int, value: int = 0) -> int:
        pointers = (self._event.ctypes.data, self._observation.ctypes.data, self._mask.ctypes.data)
        result = int(drive(self.address, operation, int(value), *pointers, 0.0, 0))
        self._drain()
        return result

    def _drain(self) -> None:
        """Notes the commands that the Pit has given, and empties its buffer: they are carried out elsewhere."""
        self._note(self.commands()[: int(self.hot["n_commands"][0])])
        self.hot["n_commands"] = 0

    def commands(self) -> np.ndarray:
        """The whole buffer of commands (a live view)."""
        begin = int(self.hot["command_at"][0])  # the last of the Pit's tables
        rows = (int(self.hot["size"][0]) - begin) // state.COMMAND.itemsize
        return self.memory[begin : begin + rows * state.COMMAND.itemsize].view(state.COMMAND)

    def _note(self, commands: np.ndarray) -> None:
        for kind, call, task, function, variant, pool, copy, model in commands.tolist():
            self._operations.append({
                "time_s": self.now / 1e6,
                "kind": layout.COMMANDS[kind],
                "call": call if call >= 0 else None,
                "task": task if task >= 0 else None,
                "function": _name(self.names.functions, function),
                "variant": _name(layout.VERBS, variant),
                "pool": _name(self.names.pools, pool),
                "copy": copy if copy >= 0 else None,
                "model": _name(self.names.models, model),
            })  # fmt: skip

    # ------------------------------------------------------------------ what the rows tell
    def _table(self, name: str, dtype: np.dtype[Any], count: str) -> np.ndarray:
        begin = int(self.hot[name][0])
        return self.memory[begin : begin + int(self.hot[count][0]) * dtype.itemsize].view(dtype)

    def _pools(self) -> np.ndarray:
        return self.hot["pools"][0, : len(self.names.pools)]

    def observe(self, exposure: str) -> tuple[np.ndarray, np.ndarray]:
        """Observation (512,) float32 and mask (128,) uint8, new arrays, as a player under this exposure sees them."""
        self.hot["exposure"] = layout.EXPOSURES.index(exposure)
        self._do(OBSERVE)
        return self._observation.copy(), self._mask.copy()

    def state(self) -> Row:
        """The Pit now, as the struct `state`."""
        score = score_parts(self.observe("full")[0])
        hot, pools = self.hot[0], self._pools()
        budgets = hot["budgets"][: len(self.names.memories)]
        tasks = np.bincount(self._table("task_at", state.TASK, "n_tasks")["state"], minlength=len(layout.TASK_STATES))
        copies = np.bincount(self._table("copy_at", state.COPY, "n_copies")["state"], minlength=len(layout.COPY_STATES))
        credit = np.minimum(pools["full"], pools["credit"] + hot["now"] - pools["credited"])
        return {
            "time_s": self.now / 1e6,
            "status": layout.STATUSES[hot["status"]],
            **dict(zip(layout.TASK_STATES, tasks.tolist(), strict=True)),
            "held": int(hot["n_held"]),
            "calls": int(hot["n_calls"]),
            **{name: pools[name].tolist() for name in ("busy", "queued", "failures")},
            "tokens_share": [c / f if f > 0 else None for c, f in zip(credit.tolist(), pools["full"].tolist(), strict=True)],
            "memory_share": [u / c if c > 0 else 0.0 for c, u, *_ in budgets.tolist()],
            **dict(zip(layout.COPY_STATES[1:], copies[1:].tolist(), strict=True)),
            "spent": float(hot["spent"]) / 1e6,
            "committed": float(hot["committed"]) / 1e6,
            "warnings": int(hot["warnings"]),
            "score": score,
        }

    def begin(self, before: Row, action: int, exposure: str, **about: Any) -> None:
        """Opens a decision's row, `before` being `state()` now; `about` fills the columns that the Pit does not know."""
        observation, mask = self.observe(exposure)
        self._decision += 1
        self._clear()
        self._row = {
            "exposure": exposure,
            **about,
            "pools": self.names.pools,
            "places": self._pools()["places"].tolist(),
            "memories": self.names.memories,
            "decision": self._decision,
            "time_s": before["time_s"],
            "action": int(action),
            "action_name": layout.action_name(action),
            "legal": bool(mask[action]),
            "legal_actions": int(mask.sum()),
            "wait_legal": bool(mask[layout.WAIT]),
            **self._head(action),
            "before": before,
            "observation": observation,
            "mask": mask,
        }

    def _head(self, action: int) -> Row:
        """What an action on a slot is about; only None for the others."""
        slot, verb = divmod(int(action), layout.N_VERBS)
        if action >= layout.WAIT or slot >= self.hot["n_slots"][0]:
            return dict.fromkeys(("slot", "task", "task_id", "function", "variant", "attempts"))
        head = int(self.hot["slots"][0, slot]["head"])
        row = self._table("task_at", state.TASK, "n_tasks")[head]
        variant = verb if verb < layout.N_VARIANTS else layout.STANDARD
        if verb in (layout.HEDGE, layout.CANCEL):
            calls = self._table("call_at", state.CALL, "n_calls")
            variant = next((int(c["variant"]) for c in calls if c["task"] == head), layout.STANDARD)
        return {
            "slot": slot,
            "task": head,
            "task_id": self.names.tasks[head] if self.names.tasks is not None else None,
            "function": self.names.functions[row["function"]],
            "variant": layout.VERBS[variant],
            "attempts": int(row["attempts"]),
        }

    def finish(self, after: Row, reward: float | None = None) -> Row:
        """Closes the row that `begin` opened, `after` being `state()` now; every column of `columns(True)`."""
        return {
            **self._row,
            "after": after,
            "operations": self._operations,
            "events": self._events,
            "outcome": layout.OUTCOMES[self.hot["outcome"][0]],
            "seconds": round(after["time_s"] - self._row["time_s"], 6),
            "busy_place_seconds": (self._busy / 1e6).tolist(),
            "loads": sum(operation["kind"] == "load" for operation in self._operations),
            "money": round(after["spent"] - self._row["before"]["spent"], 6),
            "efficiency": after["score"]["efficiency"],
            "reward": reward,
        }

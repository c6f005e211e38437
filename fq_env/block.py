"""One environment's memory: how much a set of levels needs, where its tables lie, and what it holds before any draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fq_env.level import Level
from fq_env.state import WORLD, due_rows, world_tables
from pit import state
from pit.build import copy_rows, fill_system


def aligned(size: int) -> np.ndarray:
    """`size` zero bytes that begin at a cache line, uint8."""
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


class Block:
    """Capacities of one environment's memory for a set of levels, and where its tables lie."""

    def __init__(self, levels: Sequence[Level]) -> None:
        systems = [level.system for level in levels]
        tasks = max(level.max_tasks for level in levels)
        self.edges = max(level.max_edges for level in levels)
        self.functions = max(len(s.functions) for s in systems)
        self.models = max(len(s.models) for s in systems)
        self.places = max(
            sum(self._most(level, "places", p.places, i) for i, p in enumerate(level.system.pools.values()))
            for level in levels
        )
        self.copies = max(self._copies(level) for level in levels)
        self.tasks = tasks
        follows = any(s.prewarm for s in systems)
        twins = any(level.has_twins for level in levels)
        flows = max(level.max_workflows for level in levels)
        store = any(s.store is not None for s in systems)
        sizes = (tasks, self.edges, self.functions, self.models, self.copies, self.places, flows, follows, twins, store)
        self.pit, self.pit_size = state.tables(*sizes)
        self.world, self.world_size = world_tables(*sizes)
        self.stride = self.pit_size + self.world_size
        self.due = due_rows(self.functions, self.copies, self.places)

    @staticmethod
    def _most(level: Level, name: str, value: int, index: int) -> int:
        drawn = getattr(level.draw, name)
        return max(value, drawn[1]) if drawn is not None and index == 0 else value

    def _copies(self, level: Level) -> int:
        """Rows of the copy table for the largest memory that an instance can draw."""
        system = level.system
        memory = {k: self._most(level, "memory", v, i) for i, (k, v) in enumerate(system.memory.items())}
        return copy_rows(system.model_copy(update={"memory": memory}))

    def rows(self, memory: np.ndarray, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """A table of one environment's memory, as a view."""
        tables, base = (self.pit, 0) if name in self.pit else (self.world, self.pit_size)
        start = base + tables[name]
        return memory[start : start + count * dtype.itemsize].view(dtype)

    def hot(self, memory: np.ndarray) -> np.ndarray:
        """The Pit's hot record, (1,) `pit.state.PIT`."""
        return memory[: state.PIT.itemsize].view(state.PIT)

    def hidden(self, memory: np.ndarray) -> np.ndarray:
        """The world's record, (1,) `fq_env.state.WORLD`."""
        return memory[self.pit_size : self.pit_size + WORLD.itemsize].view(WORLD)

    def template(self, level: Level) -> tuple[np.ndarray, int]:
        """A Pit with the level's system before any draw, and how many of its bytes are copied at each reset."""
        memory = aligned(self.pit_size)
        hot = self.hot(memory)
        for name, offset in self.pit.items():
            hot[name] = offset
        copies = self.rows(memory, "copy_at", state.COPY, self._copies(level))
        variants = self.rows(memory, "variant_at", state.VARIANT, 3 * len(level.system.functions))
        models = self.rows(memory, "model_at", state.MODEL, len(level.system.models))
        store = self.rows(memory, "store_at", state.STORE, int(level.system.store is not None))
        fill_system(hot, variants, models, copies, store, level.system)
        hot["lineage"] = level.system.store is not None or any(f.fresh_seconds for f in level.system.functions.values())
        hot["size"], hot["n_tasks"], hot["flow_rows"] = self.pit_size, level.max_tasks, 1
        self.rows(memory, "flow_at", state.FLOW, 1)["weight"] = 1.0
        self.rows(memory, "call_at", state.CALL, self.places)["id"] = -1
        return memory, self.pit["ready_at"]

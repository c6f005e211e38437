"""Which columns of the observation and which actions a level can ever use: a specialist need not compute with the others.

Declared from the level's file and the feature tables, never sampled: a column that is not live is zero in every observation,
an action that is not live is never legal.
"""

from __future__ import annotations

import numpy as np

from fq_env.level import BlindLevel, ExplicitLevel, Level
from fq_env.sizes import N_STAGES
from pit import layout

# What earlier calls left: failed attempts and failures, how wrong estimates were, how the last action and the last call ended.
HISTORY = ("attempts", "failures", "health", "retries_left", "duration_error", "load_error", "failure_error")
PREFIXES = ("last_", "hint_")


def history_columns() -> np.ndarray:
    """Columns of the observation that carry history, bool (512,)."""
    names = [name.rpartition(".")[2] for name, _ in layout.columns()]
    return np.array([name in HISTORY or name.startswith(PREFIXES) for name in names])


def _never(level: Level) -> set[str]:
    """Slot and pool features that are zero in every observation of the level, at any exposure."""
    system = level.system
    never = set[str]()
    stages = isinstance(level, ExplicitLevel)  # they stand where variants are compared
    if not any(function.fresh_seconds for function in system.functions.values()):
        never.add("freshness")
    if not {"hedge", "cancel"} & set(system.verbs) and not system.order_hidden:
        never.add("overrun")
    if "queue" not in system.verbs:
        never.add("queue")
    if system.order_hidden:
        never.add("rank")
    if not system.models:
        never |= {"copies", "ready_demand", "near_demand", "victim_demand", "loading", "warm_idle"}
    if not ((system.order_hidden and any(function.code for function in system.functions.values())) or level.has_twins):
        never.add("code_or_twins")
    for verb in ("lite", "premium"):
        if not _used(level, verb) and not stages:
            never |= {f"duration_{verb}", f"quality_{verb}", f"price_{verb}"}
    return never


def _used(level: Level, verb: str) -> bool:
    """Whether the verb is enabled and, if it names a variant, some function has it."""
    variants = {name for function in level.system.functions.values() for name, _ in function.variants()}
    return verb in level.system.verbs and (verb not in layout.VERBS[: layout.N_VARIANTS] or verb in variants)


def _slots(level: Level) -> int:
    """The most slots that can be filled: one per ready task; with explicit stages three more, of calls that have ended."""
    return min(layout.N_SLOTS, level.max_tasks + 3 * isinstance(level, ExplicitLevel))


def live_columns(level: Level, exposure: str | None = None) -> np.ndarray:
    """Columns that can be other than zero, bool (512,); `exposure` None: the level's own."""
    seen = layout.EXPOSURES.index(exposure or level.exposure)
    never, slots, pools = _never(level), _slots(level), len(level.system.pools)
    tail = {"tail_tasks", "tail_work", "tail_rank", "tail_age"} if level.max_tasks <= layout.N_SLOTS else set()
    stream = level.workflow is not None and level.workflow.stream is not None
    streams = set() if stream else {"arrival_rate", "arrival_cv", "stream_open"}
    live = np.zeros(layout.N_OBSERVATION, bool)
    for i, (name, feature) in enumerate(layout.columns()):
        block, dot, short = name.rpartition(".")
        if block.startswith("slot"):
            possible = int(block[4:]) < slots and short not in never
        elif dot:
            possible = int(block[4:]) < pools and short not in never
        else:
            possible = name not in tail | streams
        live[i] = possible and feature.exposure <= seen
    return live & ~history_columns() if isinstance(level, BlindLevel) else live


def live_actions(level: Level) -> np.ndarray:
    """Actions that can be legal, bool (128,): the level's verbs on the slots that can be filled, and `wait`."""
    live = np.zeros(layout.N_ACTIONS, bool)
    stages = isinstance(level, ExplicitLevel)
    for verb, name in enumerate(layout.VERBS):
        if verb < N_STAGES if stages else _used(level, name):
            live[verb : _slots(level) * layout.N_VERBS : layout.N_VERBS] = True
    live[layout.WAIT] = True
    for k, name in enumerate(layout.GLOBAL_ACTIONS):
        live[layout.WAIT + k] |= name in level.system.verbs
    return live


def possible_actions(obs: np.ndarray, live: np.ndarray) -> np.ndarray:
    """What may be legal for all that observations (k, 512) and `live_actions` (128,) tell: the level's verbs on slots that are
    in use, and its global actions; bool (k, 128), no row all False."""
    used = obs[:, : layout.POOL_OFFSET : layout.N_SLOT_FEATURES] != 0.0
    possible = np.ones((len(obs), layout.N_ACTIONS), bool)
    possible[:, : layout.WAIT] = np.repeat(used, layout.N_VERBS, axis=1)
    return possible & live

"""From a workflow as people write it to a Pit's memory: seconds become microseconds, names become indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pit import state
from pit.errors import PitError
from pit.layout import ENABLED, NEVER, PRIOR_COUNT, STANDARD, TIER_GONE, WAIT_BIT
from pit.spec import VARIANTS, History, SystemSpec, WorkflowSpec, order_tasks

MICRO = 1_000_000


def microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * MICRO)


class Built(NamedTuple):
    """A Pit's memory, ready for the event `arrive`, and the names behind its indices."""

    memory: np.ndarray
    offsets: dict[str, int]
    counts: dict[str, int]
    workflow: WorkflowSpec
    task_ids: list[str]
    function_names: list[str]
    pool_names: list[str]
    model_names: list[str]


def copy_rows(system: SystemSpec) -> int:
    """Rows of the copy table: what the places and memory budgets can hold at once, and as many in cooldown."""
    places = sum(p.places for p in system.pools.values())
    smallest = min((m.size for m in system.models.values()), default=0)
    free = any(p.memory is None for p in system.pools.values()) or smallest == 0
    live = len(system.models) * places if free else sum(system.memory.values()) // smallest
    return 0 if not system.models else 2 * min(max(live, 1), 4096)


def fill_system(
    hot: np.ndarray, variants: np.ndarray, models: np.ndarray, copies: np.ndarray, store: np.ndarray, system: SystemSpec
) -> None:
    """Writes a system into a Pit's tables: hot (1,) PIT, variants (3 F,), models (M,), copies (C,), store (1,) or (0,)."""
    if system.store is not None:
        given = system.store
        store["capacity"][0] = given.hot, given.warm or 0, given.cold or 0
        store["fetch"][0, 1:3] = microseconds(given.fetch_seconds.warm), microseconds(given.fetch_seconds.cold)
    pools, names, budgets = list(system.pools), list(system.models), list(system.memory)
    names_of = list(system.functions)
    for p, pool in enumerate(system.pools.values()):
        hot["pools"]["places"][0, p] = pool.places
        hot["pools"]["budget"][0, p] = budgets.index(pool.memory) if pool.memory is not None else -1
        if pool.rate is not None:
            hot["pools"]["period"][0, p] = max(1, round(MICRO / pool.rate))
            tokens = [
                v.tokens
                for f in system.functions
                for n, v in system.functions[f].variants()
                if n in system.usable(f) and v.pool == pools[p]
            ]
            hot["pools"]["most"][0, p], hot["pools"]["full"][0, p] = (
                max(tokens, default=0),
                pool.burst,
            )  # times the period, at arrival
    for b, capacity in enumerate(system.memory.values()):
        hot["budgets"]["capacity"][0, b] = capacity
    variants["model"] = variants["pool"] = variants["also"] = -1
    for f, function in enumerate(system.functions.values()):
        for name, v in function.variants():
            row = variants[3 * f + VARIANTS.index(name)]
            row["nominal"], row["quality"], row["price"] = microseconds(v.seconds), v.quality, round(v.price * MICRO)
            row["pool"], row["units"], row["code"] = pools.index(v.pool), v.units, function.code
            row["model"] = -1 if v.model is None else names.index(v.model)
            row["tokens"] = v.tokens
            for also, units in v.also.items():
                row["also"], row["also_units"] = pools.index(also), units
            row["usable"] = name in system.usable(names_of[f])
        own = variants[3 * f : 3 * f + 3]
        own["kinds"] = sum(1 << k for k in range(3) if own["usable"][k])
        own["forbidden"][STANDARD] = names_of[f] in system.deny
        own["fresh"][STANDARD] = 0 if function.fresh_seconds is None else microseconds(function.fresh_seconds)
    for m, model in enumerate(system.models.values()):
        row = models[m]
        row["size"], row["serves"], row["price"] = model.size, model.serves, round(model.price * MICRO)
        row["nominal"] = row["load_est"] = microseconds(model.load_seconds)
        row["keep_alive"] = 0 if model.keep_alive_seconds is None else microseconds(model.keep_alive_seconds)
        row["here"] = row["join"] = -1
        row["free_at"] = NEVER
    values = {
        "n_functions": len(system.functions),
        "n_models": len(names),
        "n_pools": len(pools),
        "n_budgets": len(budgets),
        "n_copies": len(copies),
        "n_idle": len(copies),
        "all_places": sum(p.places for p in system.pools.values()),
        "quality_flow": system.quality_flow,
        "max_attempts": system.max_attempts,
        "warning_weight": system.warning_weight,
        "stale_quality": system.stale_quality,
        "order_hidden": system.order_hidden,
        "verbs": sum(1 << ENABLED.index(v) for v in {*system.verbs, ENABLED[WAIT_BIT]}),
        "money": 0 if system.money is None else max(1, round(system.money * MICRO)),
        "back_off": microseconds(system.back_off_seconds),
        "back_off_most": NEVER if system.back_off_most_seconds is None else microseconds(system.back_off_most_seconds),
        "jitter": system.back_off_jitter or 0.0,
        "time_out": system.time_out or 0.0,
        "ageing": microseconds(system.ageing_seconds),
        "reserve": microseconds(system.reserve_seconds),
        "any_gang": bool((variants["also"] >= 0).any()),
        "fair": system.fair,
        "fallback": system.fallback,
        "prewarm": system.prewarm,
        "rebalance": system.rebalance,
        "heal": system.heal,
        "any_store": system.store is not None,
        "last_model": -1,
        "n_limited": sum(pool.rate is not None for pool in system.pools.values()),
        "deadline": NEVER if system.deadline_seconds is None else microseconds(system.deadline_seconds),
        "horizon": NEVER if system.horizon_seconds is None else microseconds(system.horizon_seconds),
    }
    for key, value in values.items():
        hot[key] = value


def build_pit(
    workflow: WorkflowSpec, exposure: int, history: History | None = None, then: Sequence[WorkflowSpec] = (), salt: int = 0
) -> Built:
    """A Pit's memory for one workflow, or for a stream of it and those `then`. Raises `PitError`."""
    flows = [order_tasks(w) for w in (workflow, *then)]
    workflow, system = flows[0], flows[0].system
    for g, other in enumerate(flows):
        if other.system != system:
            raise PitError(f"workflow {g} of the stream ({other.name!r}) has another system than the first; give all the same")
    contents: dict[int, tuple[int, str]] = {}
    for g, other in enumerate(flows):
        for t in other.tasks:
            first, function = contents.setdefault(t.content, (g, t.function)) if t.content else (g, t.function)
            if function != t.function:
                raise PitError(
                    f"task {t.id!r} of workflow {g} of the stream: content {t.content} stands for a result of {function!r} in "
                    f"workflow {first}, and {t.function!r} is called here; give results of other functions another number"
                )
    tasks, functions, models = [t for w in flows for t in w.tasks], list(system.functions), list(system.models)
    firsts = np.cumsum([0, *(len(w.tasks) for w in flows)])
    inputs, soft = list[list[int]](), list[set[int]]()
    for first, w in zip(firsts, flows, strict=False):
        index = {t.id: int(first) + i for i, t in enumerate(w.tasks)}
        for t in w.tasks:
            inputs.append([index[a] for a in t.inputs])
            loose = {index[a] for a in t.inputs if a in t.soft or tasks[index[a]].optional}
            soft.append(loose if t.join == "all" else set())
    edges = sum(map(len, inputs))
    places = sum(p.places for p in system.pools.values())
    twins = any(t.content for t in tasks)
    offsets, size = state.tables(
        len(tasks),
        edges,
        len(functions),
        len(models),
        copy_rows(system),
        places,
        len(flows),
        system.prewarm,
        twins,
        system.store is not None,
    )
    raw = np.zeros(size + 64, np.uint8)
    memory = raw[-raw.ctypes.data % 64 :][:size]  # aligned to a cache line

    def rows(name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        return memory[offsets[name] : offsets[name] + count * dtype.itemsize].view(dtype)

    hot = memory[: state.PIT.itemsize].view(state.PIT)
    for name, offset in offsets.items():
        hot[name] = offset
    hot["size"], hot["exposure"], hot["watched"], hot["salt"] = size, exposure, 1, salt
    hot["flow_rows"], hot["stream"], hot["stream_open"] = len(flows), len(flows) > 1, len(flows) > 1
    table = rows("flow_at", state.FLOW, len(flows))
    table["first"], table["last"], table["weight"] = firsts[:-1], firsts[1:], [w.weight for w in flows]
    variants = rows("variant_at", state.VARIANT, 3 * len(functions))
    model_rows = rows("model_at", state.MODEL, len(models))
    store = rows("store_at", state.STORE, int(system.store is not None))
    fill_system(hot, variants, model_rows, rows("copy_at", state.COPY, copy_rows(system)), store, system)
    hot["lineage"] = True
    rows("call_at", state.CALL, places)["id"] = -1
    table = rows("task_at", state.TASK, len(tasks))
    outputs: list[list[int]] = [[] for _ in tasks]
    for i, before in enumerate(inputs):
        for j in before:
            outputs[j].append(i)
    for lists, kind, dtype_name in ((inputs, "pred", "pred_at"), (outputs, "succ", "succ_at")):
        ends = np.cumsum([len(x) for x in lists])
        table[f"{kind}_to"], table[f"{kind}_from"] = ends, ends - [len(x) for x in lists]
        links = rows(dtype_name, state.LINK, edges)
        links["task"] = [j for x in lists for j in x]
        pairs = [(i, j) if kind == "pred" else (j, i) for i, x in enumerate(lists) for j in x]  # (consumer, producer)
        links["soft"] = [producer in soft[consumer] for consumer, producer in pairs]
    for i, t in enumerate(tasks):
        table["function"][i] = functions.index(t.function)
        table["required"][i] = not t.optional
        table["join_any"][i], table["priority"][i] = t.join == "any", t.priority
    hot["any_join"], hot["any_twins"] = any(t.join == "any" for t in tasks), twins
    artifacts, latest = rows("artifact_at", state.ARTIFACT, len(tasks)), dict[int, int]()
    for i, t in enumerate(tasks):
        artifacts["hint"][i] = 0 if t.seconds is None else microseconds(t.seconds)
        artifacts["content"][i], artifacts["next_twin"][i] = t.content, i
        artifacts["source"][i], artifacts["tier"][i] = -1, TIER_GONE
        if t.content:  # into the ring, behind the twin before
            ring, twin = artifacts["next_twin"], latest.get(t.content, i)
            ring[i], ring[twin] = ring[twin], i
            latest[t.content] = i
    if history is not None:
        _fill_history(variants, model_rows, functions, models, history)
    counts = {
        "tasks": len(tasks),
        "functions": len(functions),
        "models": len(models),
        "copies": copy_rows(system),
        "places": places,
        "flows": len(flows),
    }
    ids = [t.id for t in tasks] if len(flows) == 1 else [f"{g}/{t.id}" for g, w in enumerate(flows) for t in w.tasks]
    return Built(memory, offsets, counts, workflow, ids, functions, list(system.pools), models)


def _fill_history(variants: np.ndarray, models: np.ndarray, functions: list[str], names: list[str], history: History) -> None:
    for (function, name), (n, s, ss) in history.durations.items():
        row = variants[3 * functions.index(function) + VARIANTS.index(name)]
        row["n"], row["s"], row["ss"] = n, s, ss
    for name, (n, s) in history.loads.items():
        row = models[names.index(name)]
        row["n"], row["s"] = n, s
        row["load_est"] = row["nominal"] * ((PRIOR_COUNT + s) / (PRIOR_COUNT + n))
    if not all(math.isfinite(x) for x in [*variants["s"], *variants["ss"], *models["s"]]):
        raise PitError("the history holds a number that is not finite; measure again")

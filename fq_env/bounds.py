"""What a level may draw: nothing that the system lacks, and no number that microseconds and micro-units cannot hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pit.layout import MAX_PLACES

if TYPE_CHECKING:
    from fq_env.level import Level

MOST_SECONDS = 1e12  # of all tasks one after the other, times the horizon: int64 ends at 9.2e12 s
MOST_COST = 9e6  # of one call; its microseconds times the price's micro-units must fit
_TAIL = 3.47  # the largest normal number that is drawn, in standard deviations


def extreme(cv: float) -> float:
    """The largest factor that is drawn with this coefficient of variation."""
    variance = math.log(1.0 + cv * cv)
    return math.exp(_TAIL * math.sqrt(variance) - 0.5 * variance)


def check_draw(level: Level) -> None:
    """Raises ValueError for a draw beyond what the system has."""
    system, draw = level.system, level.draw
    first = next(iter(system.pools))
    units = [v.units for f in system.functions.values() for _, v in f.variants() if v.pool == first]
    budgets = list(system.memory)
    sizes = [
        system.models[v.model].size
        for f in system.functions.values()
        for _, v in f.variants()
        if v.model is not None and budgets and system.pools[v.pool].memory == budgets[0]
    ]
    limits = {
        "functions": (1, len(system.functions), "functions of the system"),
        "models": (1, len(system.models), "models of the system"),
        "places": (max(units, default=1), MAX_PLACES, "places of a pool, enough for its largest variant"),
        "memory": (max(sizes, default=1), 1_000_000_000 if budgets else 0, "memory units, enough for the largest model"),
    }
    for name, (low, high, what) in limits.items():
        drawn = getattr(draw, name)
        if drawn is not None and not low <= drawn[0] <= drawn[1] <= high:
            raise ValueError(f"draw.{name} = {list(drawn)}: must be a range within {low}..{high}, the {what}")
    if draw.models is not None:
        pools = {f.standard.pool for f in system.functions.values()}
        dealt = list(system.models)[: draw.models[1]]
        homes = {v.pool for f in system.functions.values() for _, v in f.variants() if v.model in dealt}
        if len(pools | homes) > 1:
            raise ValueError(
                "draw.models deals out models among all functions; let them share one pool with all standard variants"
            )
    for name, pool in system.pools.items():
        if pool.rate is not None and not 1e-6 <= pool.rate * draw.rate[0] <= pool.rate * draw.rate[1] <= 1e5:
            raise ValueError(f"draw.rate times pools.{name}.rate must lie between 1e-6 and 1e5 tokens per second")
    for name in ("outages", "fault_domains", "crowded", "drift", "api_change"):
        for pool in getattr(draw, name):
            if pool not in system.pools:
                raise ValueError(f"draw.{name} names the pool {pool!r}; known are {', '.join(system.pools)}")
    if draw.deadline is None and level.score.late < 1.0:
        raise ValueError(
            "score.late counts what comes after the deadline, but draw.deadline sets none; give a range, such as [1.2, 2]"
        )
    if level.order is not None and level.order.held > 0:
        for goal in level.order.goals:
            if not level.order.alternatives(goal):
                raise ValueError(f"order.goals: {goal!r} needs nothing, so it may be held from the start; set order.held to 0")
    _check_sizes(level)


def check_gates(level: Level) -> None:
    """Raises ValueError for a gate that guards nothing, or that never opens."""
    system, draw = level.system, level.draw
    first = next(iter(system.pools))
    for k, gate in enumerate(level.gates):
        if (gate.pool is None) == (gate.model is None):
            raise ValueError(f"gates.{k} must name either a pool (with `free`) or a model")
        guarded = [f.variants() for name, f in system.functions.items() if gate.verb in system.usable(name)]
        calls = [v for variants in guarded for name, v in variants if name == gate.verb and gate.at in (None, v.pool)]
        if not calls:
            where = "" if gate.at is None else f" in pool {gate.at!r}"
            raise ValueError(f"gates.{k}.verb is {gate.verb!r}, which no function can use{where}; name another variant")
        if gate.pool is not None:
            if gate.pool not in system.pools:
                raise ValueError(f"gates.{k} names the pool {gate.pool!r}; known are {', '.join(system.pools)}")
            places = system.pools[gate.pool].places
            if gate.pool == first and draw.places is not None:
                places = draw.places[0]
            most = max(v.units if v.pool == gate.pool else v.also.get(gate.pool, 0) for v in calls)
            if gate.free > places - most:
                raise ValueError(
                    f"gates.{k}.free is {gate.free}, but of {places} places of {gate.pool!r} such a call leaves "
                    f"{places - most}: it would never open; ask for fewer"
                )
        elif gate.model not in (served := _served(level)):
            raise ValueError(f"gates.{k} names the model {gate.model!r}, which nothing loads; name one of {', '.join(served)}")


def _served(level: Level) -> list[str]:
    """The models that some usable variant has in every instance."""
    system, dealt = level.system, level.draw.models
    usable = {name: system.usable(name) for name in system.functions}
    used = [(k, v.model) for name, f in system.functions.items() for k, v in f.variants() if k in usable[name]]
    found = {model for k, model in used if dealt is None or k != "standard"}
    if dealt is not None:  # standard variants are dealt the first ones
        found |= set(list(system.models)[: dealt[0]])
    return [name for name in system.models if name in found]


def _check_sizes(level: Level) -> None:
    system, draw = level.system, level.draw
    late = draw.straggler_factor[1] if draw.straggler_rate[1] > 0 else 1.0
    usual = draw.seconds[1] * extreme(draw.task_cv) * extreme(draw.noise_cv[1]) * max(1.0, late)
    given = level.workflow.given.tasks if level.workflow is not None and level.workflow.given is not None else []
    longest = worst_cost = 0.0
    for function, f in system.functions.items():
        written = max((t.seconds or 0.0 for t in given if t.function == function), default=0.0)
        for name, v in f.variants():
            own = max(v.seconds, written * v.seconds / f.standard.seconds)
            seconds = own * usual * (1.0 if name == "standard" else draw.variant_seconds[1])
            longest, worst_cost = max(longest, seconds), max(worst_cost, seconds * v.price)
    for model in system.models.values():
        load = model.load_seconds * draw.load_seconds[1] * draw.model_load[1] * extreme(draw.load_cv)
        longest, worst_cost = max(longest, load), max(worst_cost, load * model.price)
    if longest * level.max_tasks * level.horizon > MOST_SECONDS:
        raise ValueError(
            f"a call or load may last {longest:.3g} s; times {level.max_tasks} tasks and horizon {level.horizon:g} that is "
            f"more than {MOST_SECONDS:g} s: take shorter ones"
        )
    if worst_cost > MOST_COST:
        raise ValueError(f"a call or load may cost {worst_cost:.3g}; at most {MOST_COST:g} can be counted: take lower prices")

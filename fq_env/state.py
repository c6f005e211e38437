"""Records of the game's kernels: a level's parameters, the hidden world behind one Pit, an episode's result, an engine.

One environment is one block of memory: a Pit (`pit.state`), and at `pit.size` bytes behind it its world with tables of
its own. The Pit never reads the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fq_env.sizes import MAX_ALTERNATIVES, MAX_BLUEPRINTS, MAX_GATES, MAX_GOALS, MAX_PLANS, MAX_WEIGHTS
from pit.layout import MAX_POOLS
from pit.memory import record_at, table
from pit.state import EVENT, INDEX, whole_lines

REWARDS = ("potential", "sparse", "makespan", "conductor")
AUTORESETS = ("disabled", "next_step", "same_step")
SPLITS = ("train", "validation", "test")


def _record(fields: list[Any]) -> np.dtype[Any]:
    return np.dtype(fields, align=True)


_RANGES = (
    "seconds", "variant_seconds", "quality_gap", "load_seconds", "model_load", "hint_cv", "noise_cv", "siblings",
    "money", "rate", "straggler_rate", "straggler_factor", "optional", "any_join", "echoes", "crowd", "fresh", "deadline",
    "onset", "drift_factor", "load", "gap_cv", "change_onset",
)  # fmt: skip
_WHOLES = ("functions", "models", "places", "memory", "tasks", "width", "priorities", "distractors", "size", "workflows")
LEVEL = _record(
    [(name, "f8", (2,)) for name in _RANGES]
    + [(name, "i8", (2,)) for name in _WHOLES]
    + [
        (name, "f8")
        for name in ("exclusive", "task_cv", "belief_cv", "load_cv", "failure_rate", "lost_rate", "held", "horizon")
    ]
    + [
        (name, "f8")
        for name in (
            "slow_share",
            "slow_factor",
            "poor",
            "late",
            "outage_failure",
            "outage_after",
            "drift_failure",
            "change_after",
        )
    ]
    + [(name, "f8") for name in ("w_efficiency", "w_stability", "w_optimization")]
    + [
        ("shapes", "f8", (8 + MAX_BLUEPRINTS,)),  # cumulated weights: families, then blueprints
        ("blueprints", "i8", (MAX_BLUEPRINTS,)),  # addresses of their tables, see `fq_env.tables`
        ("stages", "i8", (MAX_BLUEPRINTS,)),
        ("items", "i8", (MAX_BLUEPRINTS, 2)),  # low, high
        ("given", "i8"),  # address of a fixed workflow's tasks
        ("n_given", "i8"),
        ("given_edges", "i8"),
        ("n_given_edges", "i8"),
        ("weights", "f8", (MAX_WEIGHTS,)),  # of a stream's workflows, one is drawn for each
        ("n_weights", "i8"),
        ("earlier", "i8", (8,)),
        ("n_earlier", "i8"),
        ("slow_window", "i8"),  # us
        ("outage_window", "i8"),  # us
        ("crowd_window", "i8"),  # us
        ("outages", "f8", (MAX_POOLS,)),  # share of windows in which a pool is out
        ("crowded", "f8", (MAX_POOLS,)),  # share of windows in which other tenants take places of it
        ("domains", "i8", (MAX_POOLS,)),  # pools of one fault domain are out together
        ("drift", "f8", (MAX_POOLS,)),  # chance that a pool decays
        ("api_change", "f8", (MAX_POOLS,)),  # chance that a variant of a pool changes
        ("config_time", "i8"),  # us
        ("any_change", "i8"),
        ("gates", "i8", (MAX_GATES, 5)),  # variant, its pool (-1 = any), pool (-1 = none), places that must be free, model
        ("gate_after", "f8", (MAX_GATES,)),  # of a call's duration, after which it fails at the closed gate
        ("n_gates", "i8"),
        ("any_outage", "i8"),
        ("any_drift", "i8"),
        ("any_crowd", "i8"),
        # Hidden order, bit masks of functions: what each function needs (alternatives), needs softly, prefers, spoils ...
        ("needs", "u8", (16, MAX_ALTERNATIVES)),
        ("n_needs", "i8", (16,)),
        ("soft", "u8", (16,)),
        ("prefers", "u8", (16,)),
        ("spoils", "u8", (16,)),
        # ... and of each goal the plans that reach it, and all that is useful for it.
        ("plans", "u8", (MAX_GOALS, MAX_PLANS)),
        ("n_plans", "i8", (MAX_GOALS,)),
        ("useful", "u8", (MAX_GOALS,)),
        ("n_goals", "i8"),
        ("order_hidden", "i8"),
        ("max_steps", "i8"),
        ("depth", "i8"),  # decisions after which lookahead cuts a future short; 0 = it is played to its end
        ("shortlist", "i8"),  # of the rule's favourites that lookahead tries; 0 = all that is legal
        ("number", "i8"),
        ("key", "u8"),  # seed of the level's named instances
        ("template", "i8"),  # address of a Pit with the level's system, before any draw
        ("template_size", "i8"),  # bytes of it that are copied into an environment
    ]
)
WORLD = _record(
    [
        ("instance_seed", "u8"),
        ("stream", "u8"),  # generation
        ("drawn", "u8"),
        ("durations", "u8"),  # seeds of the other streams
        ("failures", "u8"),
        ("loads", "u8"),
        ("player", "u8"),
        ("stragglers", "u8"),
        ("outages", "u8"),
        ("tenants", "u8"),
        ("arrivals", "u8"),
        ("sizes", "u8"),
        ("outages_later", "u8"),  # of windows that begin after `branch`: another future has its own
        ("tenants_later", "u8"),
        ("branch", "i8"),  # us
        ("onset", "i8", (MAX_POOLS,)),  # us, when a pool decays; NEVER = it does not
        ("decay", "f8", (MAX_POOLS,)),  # on its durations from then on
        ("train_stream", "u8"),  # of this environment; survives resets
        ("episode", "i8"),  # train instances drawn so far
        ("instance", "i8"),
        ("split", "i8"),
        ("level", "i8"),  # index into the engine's levels
        ("next_level", "i8"),  # the same, of the next episode
        ("have", "u8"),  # hidden order: functions whose outcome is held
        ("useful", "u8"),  # functions that help to reach the goal
        ("goal_index", "i8"),
        ("straggler_rate", "f8"),
        ("noise", "f8"),  # sigma of durations
        ("load_noise", "f8"),  # sigma of loads
        ("load", "f8"),  # a stream's work over what all places can do until the next workflow arrives
        ("gap_noise", "f8"),  # sigma of the gaps
        ("bounds_sum", "f8"),  # us, sum of weight x LB over a stream's workflows
        ("lb", "f8"),  # us, under true means
        ("cost_low", "f8"),  # micro-units
        ("cost_high", "f8"),
        ("cost_left", "f8"),  # least cost of what is required and not done
        ("load_cost", "f8"),  # micro-units, the load that cannot be avoided; 0 once one is paid
        ("work_left", "f8"),  # us, least work of what is required and not done
        ("base", "f8"),  # quality still deliverable
        ("phi", "f8"),
        ("phi0", "f8"),
        ("left", "f8"),  # us, lower bound of what is left (reward=makespan)
        ("reward_sum", "f8"),
        ("steps", "i8"),
        ("calls", "i8"),
        ("cold_starts", "i8"),
        ("load_count", "i8"),
        ("wrong_calls", "i8"),
        ("poor_calls", "i8"),
        ("waits", "i8"),
        ("holds", "i8"),
        ("hedges", "i8"),
        ("cancels", "i8"),
        ("queued", "i8"),
        ("skips", "i8"),
        ("given_up", "i8"),  # tasks that the deliverable quality knows to be given up
        ("short", "i8"),  # decisions at which a start was refused for tokens or money alone
        ("stragglers_met", "i8"),
        ("outage_calls", "i8"),
        ("stale_calls", "i8"),
        ("refreshes", "i8"),
        ("decayed_calls", "i8"),
        ("changed_calls", "i8"),
        ("echo_calls", "i8"),
        ("gated_calls", "i8"),
        ("fetches", "i8"),
        ("moved", "i8"),
        ("deleted", "i8"),
        ("defers", "i8"),
        ("overflow", "i8"),  # decisions after which an open task found no slot
        ("busy", "f8"),  # us of calls under way, all together
        ("critical_wait", "f8"),  # us that tasks on the critical path were ready before they began
        ("critical_quality", "f8"),  # sum over calls on the critical path
        ("critical_cost", "f8"),  # micro-units
        ("pending", "i8"),  # 1: the episode has ended (next_step: the next step resets); 2: sits the next step out
        ("event", EVENT),
        ("truth_at", "i4"),
        ("goal_at", "i4"),
        ("due_at", "i4"),
        ("load_truth_at", "i4"),
        ("edge_at", "i4"),
        ("sink_at", "i4"),
        ("span_at", "i4"),
        ("n_edges", "i4"),  # of the workflow drawn last
        ("n_sinks", "i4"),
        ("n_due", "i4"),  # events to come, the next one last
    ]
)
TRUTH = _record(  # per variant row
    [
        ("mean", "f8"),  # us
        ("best", "f8"),  # quality of the function (standard's row)
        ("change", "i8"),  # us after the arrival, when its API changes; NEVER = it does not, beyond that: not any more
    ]
)
GOAL = _record(
    [
        ("factor", "f8"),  # of the task's true mean over its function's
        ("least", "f8"),  # us, true mean of the fastest usable variant
        ("rank", "f8"),  # us, upward rank of `least`
        ("cost", "f8"),  # micro-units, least
        ("own", "f8"),  # quality of its best variant, on perfect inputs
        ("best", "f8"),  # quality of the output: reached, or still reachable
        ("done_at", "i8"),  # us, when the task was done last
        ("done", "i4"),  # version of its output as far as what is left knows it, 0 = none
        ("stale", "u1"),  # `best` must be computed again
        ("needed", "u1"),  # no run succeeds without it
    ]
)
SPAN = _record(  # a workflow of a stream, under true means
    [
        ("lb", "f8"),  # us
        ("work", "f8"),  # us, least work of what is needed
        ("work_left", "f8"),  # us, of it what is not done
        ("left", "f8"),  # us, lower bound of what is left
        ("path", "f8"),  # us, scratch
        ("running", "f8"),  # us, scratch
    ]
)
# What will happen at `when`, us; task -1: about no task; gate: the closed one that the call met, counted from 1, 0 = none.
DUE = _record([("when", "i8"), ("event", EVENT), ("task", "i4"), ("gate", "i4")])
LOAD_TRUTH = _record([("mean", "f8"), ("count", "i8")])
EDGE = _record([("source", "i2"), ("target", "i2"), ("soft", "i2")])  # soft as written
GIVEN = _record(  # a task of a fixed workflow
    [("factor", "f8"), ("function", "i4"), ("content", "i4")]
    + [(name, "u1") for name in ("required", "hinted", "join_any", "priority")]
)
EPISODE = _record(
    [(name, "f8") for name in ("total", "base", "efficiency", "stability", "optimization", "phi0", "reward_sum")]
    + [(name, "f8") for name in ("makespan", "lb", "cost")]
    + [(name, "f8") for name in ("cost_low", "busy", "critical_wait", "critical_quality", "critical_cost")]
    + [(name, "i8") for name in ("steps", "calls", "cold_starts", "loads", "wrong_calls", "warnings", "waits", "holds")]
    + [(name, "i8") for name in ("poor_calls", "hedges", "cancels", "queued", "skips", "short", "stragglers")]
    + [(name, "i8") for name in ("outage_calls", "stale_calls", "refreshes", "reused", "late", "decayed_calls", "echo_calls")]
    + [(name, "i8") for name in ("gated_calls", "changed_calls", "fetches", "moved", "deleted")]
    + [("flow", "f8"), ("slowdown", "f8"), ("workflows", "i8"), ("defers", "i8"), ("overflow", "i8")]
    + [("instance_seed", "u8"), ("split", "i8"), ("instance", "i8"), ("level", "i8"), ("status", "i8")]
)
ADDRESSES = (
    "memory", "levels", "actions", "obs", "masks", "rewards", "terminated", "truncated",
    "final_obs", "final_masks", "episodes", "reset", "split", "instance",
)  # fmt: skip
ENGINE = _record(
    [(name, "i8") for name in ADDRESSES]
    + [
        (name, "i8")
        for name in ("n", "stride", "autoreset", "reward", "max_steps", "rule", "preferred", "exposure", "final", "fresh")
    ]
    + [("theta", "f8"), ("weights", "i8"), ("scratch", "i8"), ("rollouts", "i8"), ("means", "i8")]
)

engine_at = record_at(ENGINE)
level_at = record_at(LEVEL)
world_at = record_at(WORLD)
episode_at = record_at(EPISODE)
integer_at = record_at(_record([("x", "i8")]))
float_at = record_at(_record([("x", "f8")]))
byte_at = record_at(_record([("x", "u1")]))
truth = table(WORLD, "truth_at", TRUTH)
goal = table(WORLD, "goal_at", GOAL)
due = table(WORLD, "due_at", DUE)
load_truth = table(WORLD, "load_truth_at", LOAD_TRUTH)
edge = table(WORLD, "edge_at", EDGE)
edge_at = record_at(EDGE)
given_at = record_at(GIVEN)
span = table(WORLD, "span_at", SPAN)
sink = table(WORLD, "sink_at", INDEX)  # required sinks


def due_rows(functions: int, copies: int, places: int) -> int:
    """Rows of the table of events to come: one workflow may arrive, variants may be configured, and the last one is spare."""
    return places + copies + MAX_POOLS + 3 * functions + 2


def world_tables(
    tasks: int,
    edges: int,
    functions: int,
    models: int,
    copies: int,
    places: int,
    flows: int,
    follows: bool,
    twins: bool,
    store: bool,
) -> tuple[dict[str, int], int]:
    """Offsets of the world's tables behind its record, and the bytes of both (a multiple of 64)."""
    rows = (
        ("truth_at", TRUTH, 3 * functions),
        ("load_truth_at", LOAD_TRUTH, models),
        ("due_at", DUE, due_rows(functions, copies, places)),
        ("span_at", SPAN, flows),
        ("goal_at", GOAL, tasks),
        ("edge_at", EDGE, edges),
        ("sink_at", INDEX, tasks),
    )
    offsets, end = {}, whole_lines(WORLD.itemsize)
    for name, dtype, count in rows:
        offsets[name] = end
        end += whole_lines(dtype.itemsize * count)
    return offsets, end

"""The Pit's memory: one hot record, followed by an arena of tables with run-time lengths.

Every table is declared here once, and its accessor beside it: `task(s, i)` is row i of the tasks of the Pit `s`.
Offsets are relative to the record, so a Pit can be copied as bytes (clone, snapshot, restore).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pit.layout import HEALINGS, MAX_POOLS, N_SLOTS, TOLD_ROWS
from pit.memory import LINE, record_at, table


def _record(fields: list[Any]) -> np.dtype[Any]:
    return np.dtype(fields, align=True)


POOL = _record(
    [
        ("places", "i4"),
        ("busy", "i4"),  # places taken
        ("tenants", "i4"),  # places that other tenants take
        ("budget", "i4"),  # index of the memory budget, -1 = none
        ("failures", "f8"),  # chance that its next call fails, 0..1
        ("health", "f8"),  # (1 - failures) / level of durations, 0..1
        ("utilisation", "f8"),  # EWMA at `settled`
        ("settled", "i8"),  # us, when utilisation was last stored
        ("loading", "i4"),  # copies in state loading
        ("warm", "i4"),  # copies in state warm
        ("queued", "i4"),  # tasks queued in it
        ("in_row", "i4"),  # failed calls in a row
        ("closed_until", "i8"),  # us, end of its back-off; 0 = none
        ("period", "i8"),  # us per token; 0 = no rate limit
        ("full", "i8"),  # us, burst x period
        ("most", "i8"),  # us, what its dearest usable variant needs
        ("credit", "i8"),  # us, at `credited`
        ("credited", "i8"),  # us
        ("room", "f8"),  # us, when the first of its calls is expected to end, as found by the encoder
    ]
)
BUDGET = _record([("capacity", "i8"), ("used", "i8"), ("evictable", "i8")])  # memory units; evictable = size of warm copies
SLOT = _record(
    [
        ("head", "i4"),  # task index
        ("count", "i4"),  # members
        ("legal", "u1"),  # bit per verb
        ("mode", "u1", (3,)),  # how each variant would begin: see pool_manager
    ]
)
PIT = _record(
    [
        ("now", "i8"),  # us
        ("t0", "i8"),  # us, arrival
        ("deadline", "i8"),  # us after arrival until it arrives, then absolute; NEVER = none
        ("horizon", "i8"),
        ("spent", "i8"),  # micro-units
        ("unit", "f8"),  # us, the mean call at arrival
        ("lb", "f8"),  # us, LB_est at arrival
        ("work_total", "f8"),  # us
        ("work_left", "f8"),  # us
        ("cp_start", "f8"),  # us
        ("upper_cost", "f8"),  # micro-units
        ("quality_flow", "f8"),
        ("warning_weight", "f8"),
        ("quality_done", "f8"),  # sum over done required sinks
        ("duration_error", "f8"),
        ("load_error", "f8"),
        ("failure_error", "f8"),
        ("cost_left", "f8"),  # micro-units, of what is not done nor given up, with standard
        ("money", "i8"),  # micro-units; 0 = no limit
        ("committed", "i8"),  # micro-units, of calls in flight and loads
        ("back_off", "i8"),  # us
        ("back_off_most", "i8"),  # us, NEVER = no limit
        ("salt", "u8"),  # of this run: what its jitter is made from
        ("jitter", "f8"),  # share of a back-off that may be left out
        ("ageing", "i8"),  # us
        ("reserve", "i8"),  # us that a queued gang claims its pools
        ("time_out", "f8"),  # multiple of the estimate
        ("stale_quality", "f8"),  # what a stale input still counts
        ("lb_sum", "f8"),  # us, of the workflows that have arrived
        ("last_arrival", "i8"),  # us
        ("stale_at", "i8"),  # us, when `pit.freshness` must look again
        ("gap_squares", "f8"),  # us^2, sum over the gaps between arrivals
        ("task_at", "i4"),  # offsets of the tables, bytes behind this record's start
        ("succ_at", "i4"),
        ("pred_at", "i4"),
        ("ready_at", "i4"),
        ("near_at", "i4"),
        ("follow_at", "i4"),
        ("artifact_at", "i4"),
        ("store_at", "i4"),
        ("members_at", "i4"),
        ("flow_at", "i4"),
        ("vital_at", "i4"),
        ("signature_at", "i4"),
        ("healing_at", "i4"),
        ("variant_at", "i4"),
        ("model_at", "i4"),
        ("copy_at", "i4"),
        ("call_at", "i4"),
        ("command_at", "i4"),
        ("size", "i4"),  # bytes of record and tables
        ("n_tasks", "i4"),  # of the workflows that have arrived: the first rows
        ("n_flows", "i4"),  # workflows that have arrived
        ("flow_rows", "i4"),  # workflows whose tasks stand in the table
        ("n_active", "i4"),  # workflows that have arrived and not ended
        ("n_functions", "i4"),
        ("n_models", "i4"),
        ("n_pools", "i4"),
        ("n_full", "i4"),  # pools without a free place: without another one no start is legal, whatever is ready
        ("n_budgets", "i4"),
        ("n_copies", "i4"),  # rows of the copy table
        ("copy_rows", "i4"),  # rows of it that may not be idle
        ("all_places", "i4"),
        ("n_ready", "i4"),
        ("n_near", "i4"),
        ("n_held", "i4"),
        ("n_queued", "i4"),
        ("n_claims", "i4"),  # of these, those of gangs
        ("n_late", "i4"),  # running tasks that stand in slots (mark OVERDUE)
        ("n_limited", "i4"),  # pools with a rate limit
        ("n_given_up", "i4"),
        ("all_tenants", "i4"),  # places that other tenants take, over all pools
        ("reused", "i4"),  # tasks whose output was that of a twin
        ("n_auto", "i4"),  # automatic loads under way
        ("n_mending", "i4"),  # variants that are being configured anew
        ("n_healings", "i4"),  # actions in the healing record so far; it keeps the last ones
        ("open_healings", "i4"),  # of those kept, whose outcome is not known yet
        ("last_model", "i4"),  # of the last call that has one; -1 = none yet
        ("n_calls", "i4"),  # in flight: the first rows of the call table, in order of their ids
        ("n_idle", "i4"),  # idle rows of the copy table
        ("n_loading", "i4"),
        ("n_cooling", "i4"),
        ("n_commands", "i4"),
        ("next_call", "i4"),
        ("n_required", "i4"),
        ("required_left", "i4"),
        ("n_sinks", "i4"),  # required sinks
        ("sinks_done", "i4"),
        ("finishes", "i4"),  # since ranks were computed
        ("actions", "i4"),
        ("zero_actions", "i4"),  # since the clock moved
        ("warnings", "i4"),
        ("ignored", "i4"),
        ("max_attempts", "i4"),
        ("n_slots", "i4"),
        ("n_tail", "i4"),  # ready tasks without a slot
        ("skipped", "i4"),  # the task that `skip` would give up, as found by the last look at slots; -1 = none
        ("victim_budget", "i4"),  # the encoder's last answer to `victim_demand`: for which budget and size (-1 = none yet)
        ("victim_size", "i8"),
        ("victim_demand", "f8"),
        ("verbs", "u4"),  # bit per enabled verb or global, in the order of `layout.ENABLED`
        ("stream", "u1"),  # more workflows may come, or could have
        ("stream_open", "u1"),
        ("any_deferred", "u1"),
        ("any_join", "u1"),  # some task joins `any`
        ("any_fresh", "u1"),  # some artifacts grow stale
        ("any_gang", "u1"),  # some variant takes places of two pools
        ("any_twins", "u1"),  # some tasks have twins
        ("any_store", "u1"),  # artifacts lie in tiers of bounded capacity
        ("lineage", "u1"),  # calls note the versions of their inputs
        ("any_tight", "u1"),  # a start can be refused for tokens, money or a back-off
        ("any_limit", "u1"),  # the same, or for a claim
        ("any_short", "u1"),  # some slot's start is refused for tokens or money alone, as found by the last look at slots
        ("any_timer", "u1"),  # there are timers besides holds and the horizon
        ("fair", "u1"),
        ("fallback", "u1"),
        ("prewarm", "u1"),
        ("rebalance", "u1"),
        ("heal", "u1"),
        ("watched", "u1"),  # somebody asks for more of health than what pools' calls come to
        ("exposure", "u1"),
        ("order_hidden", "u1"),
        ("status", "u1"),
        ("arrived", "u1"),
        ("waiting", "u1"),
        ("outcome", "u1"),
        ("hint_cold", "u1"),
        ("hint_queued", "u1"),
        ("hint_throttled", "u1"),
        ("hint_stale", "u1"),
        ("drift", "u1"),
        ("slots_valid", "u1"),
        ("any_near", "u1"),  # some model's `near` may not be 0
        ("any_start", "u1"),  # some slot's start, hedge, or cancel of a running one, is legal
        ("pools", POOL, (MAX_POOLS,)),
        ("budgets", BUDGET, (MAX_POOLS,)),
        ("slots", SLOT, (N_SLOTS,)),
        ("keys", "i4", (N_SLOTS,)),  # what the members of each slot share
    ]
)
TASK = _record(
    [  # two cache lines: what deciding and encoding read ...
        ("base", "f8", (3,)),  # us, per variant
        ("rank", "f8"),  # us
        ("since", "i8"),  # us: queued since, or held until
        ("ready_time", "i8"),  # us
        ("key", "i4"),  # what members of a slot share: see arbitration
        ("function", "i2"),
        ("attempts", "i2"),
        ("version", "u1"),  # of its artifact, at most 255
        ("echo", "u1"),  # it is ready and a twin of it is in flight
        ("slot", "i1"),
        ("mark", "u1"),  # class of an open task: plain, held, queued, running
        ("state", "u1"),
        ("required", "u1"),
        ("bucket", "u1"),
        ("near", "u1"),
        ("flow", "i2"),  # its workflow
        ("octave", "u1"),  # of its workflow's remaining work, as of the last sorting of ready tasks
        # ... and what events read
        ("work", "f8"),  # us
        ("near_time", "f8"),  # us, latest expected end among calls of its inputs
        ("quality", "f8"),  # of its artifact
        ("influence", "f8"),  # of its quality on the mean of the required sinks
        ("succ_from", "i4"),
        ("succ_to", "i4"),
        ("pred_from", "i4"),
        ("pred_to", "i4"),
        ("open_inputs", "i2"),
        ("running_inputs", "i2"),
        ("join_any", "u1"),
        ("priority", "u1"),
        ("calls", "u1"),  # in flight
        ("touched", "u1"),  # scratch
    ]
)
INDEX = _record([("task", "i4")])
# The task at the other end of an edge; `used`: the version of this input when the task was called last, 0 = it was not done.
LINK = _record([("task", "i2"), ("soft", "u1"), ("used", "u1")])
ARTIFACT = _record(
    [
        ("created", "i8"),  # us
        ("size", "i8"),  # bytes
        ("hint", "f8"),  # us that its author gave its task, 0 = none
        ("content", "i4"),  # of its task: equal for twins, 0 = none
        ("next_twin", "i4"),  # the next task of the ring of its twins; itself if it has none
        ("source", "i4"),  # the twin whose output it is; -1 = its own
        ("need", "i4"),  # 1 + how much unfinished work reads it, and how soon; 0 = must be counted again
        ("tier", "u1"),  # where it lies, with a store
        ("told", "u1"),  # where the driver knows it to lie
    ]
)
FLOW = _record(
    [
        ("weight", "f8"),
        ("lb", "f8"),  # us, LB_est at its arrival
        ("remaining", "f8"),  # us, work of its tasks not done nor given up
        ("arrived", "i8"),  # us
        ("ended", "i8"),  # us; NEVER while it is active
        ("first", "i4"),  # its tasks: first, and behind the last
        ("last", "i4"),
        ("required_left", "i4"),
        ("n_sinks", "i4"),  # required sinks
        ("octave", "u1"),  # of remaining over the mean call
        ("deferred", "u1"),  # stands in no slot
    ]
)
VARIANT = _record(
    [
        ("ratio", "f8"),  # (2 + s) / (2 + n)
        ("deviation", "f8"),  # sqrt(max(var, 0))
        ("quality", "f8"),
        ("price", "i8"),  # micro-units per second
        ("code", "f8"),
        ("pool", "i2"),
        ("model", "i2"),  # -1 = none
        ("units", "i2"),
        ("also", "i2"),  # second pool of a gang, -1 = none
        ("also_units", "i2"),
        ("usable", "u1"),
        ("kinds", "u1"),  # bit per usable variant of the function
        ("forbidden", "u1"),  # the function is (standard's row)
        ("mending", "u1"),  # it is being configured anew
        ("tokens", "i4"),
        ("served", "i4"),  # calls of the function begun from a queue (standard's row); here ends the first of two cache lines
        ("fresh", "i8"),  # us that an artifact of the function stays fresh; 0 = for ever (standard's row)
        ("nominal", "f8"),  # us
        ("n", "f8"),  # observed / hinted ratios: count, sum, sum of squares
        ("s", "f8"),
        ("ss", "f8"),
        ("ranked_ratio", "f8"),  # ratio when ranks were computed
        ("rest", "i8", (2,)),  # of the second line
    ]
)
MODEL = _record(
    [
        ("size", "i8"),  # memory units
        ("price", "i8"),  # micro-units per second of loading
        ("nominal", "f8"),  # us
        ("n", "f8"),
        ("s", "f8"),
        ("load_est", "f8"),  # us
        ("near", "f8"),  # near-future demand, filled by the encoder
        ("free_at", "f8"),  # us, when the first of its started calls is expected to end; beyond all bounds if none has started
        ("serves", "i4"),  # calls at once per copy
        ("ready", "i4"),  # ready tasks whose standard model this is
        ("live", "i4"),  # copies loading, warm or active
        ("here", "i4"),  # its first warm or active copy with room, -1 = none
        ("join", "i4"),  # its first loading copy with room
        ("soon", "i4"),  # near tasks whose standard model this is
        ("keep_alive", "i8"),  # us; 0 = for ever
    ]
)
COPY = _record(
    [
        ("last_used", "i8"),  # us
        ("load_est", "f8"),  # us, made at dispatch
        ("expected_loaded", "f8"),  # us
        ("cost", "i8"),  # micro-units committed to its load
        ("pool", "i2"),
        ("model", "i2"),
        ("budget", "i2"),
        ("users", "i2"),
        ("state", "u1"),
        ("auto", "u1"),  # loads ahead of any call
    ]
)
CALL = _record(
    [
        ("start", "i8"),  # us; -1 = waits for its load
        ("est", "f8"),  # us
        ("spread", "f8"),  # us
        ("expected_end", "f8"),  # us
        ("id", "i4"),  # -1 = free row
        ("task", "i4"),
        ("function", "i2"),
        ("variant", "i2"),
        ("pool", "i2"),
        ("copy", "i2"),  # -1 = no model
        ("model", "i2"),
        ("units", "i2"),
        ("also", "i2"),
        ("also_units", "i2"),
        ("stale", "i2"),  # stale inputs when it was dispatched
        ("overrun", "i2"),  # times that it has passed its limit
        ("cold", "u1"),
        ("queued", "u1"),
        ("hedge", "u1"),  # it was the second call of its task
        ("cost", "i8"),  # micro-units committed
        ("limit", "i8"),  # us after its start, of the next overrun
        ("fetch", "i8"),  # us of its estimate, until its inputs are there
    ]
)
STORE = _record(
    [
        ("capacity", "i8", (3,)),  # bytes, per tier; 0 = unlimited
        ("used", "i8", (3,)),  # bytes
        ("fetch", "i8", (4,)),  # us, per tier
        ("untold", "i8"),  # some artifact may lie elsewhere than the driver knows
    ]
)
MEMBERS = _record([("sets", "u8", (8,))])  # bit i of row k: task 64 k + i; one set of `pit.members` after the other
VITAL = _record(  # health of a variant or pool: one cache line, all that a calm call looks at
    [
        ("calls", "f8"),  # the latest ones weigh most
        ("fails", "f8"),
        ("rise", "f8"),  # CUSUM of failures
        ("drag", "f8"),  # CUSUM of standardised durations
        ("level", "f8"),  # EWMA of durations over calm ones
        ("calm", "f8"),  # ratio before trouble (variants)
        ("scale", "f8"),  # 1 / spread of that (variants)
        ("known", "i4"),  # calls that its usual rate of failures was learned from
        ("in_row", "u2"),  # failures in a row, at most 65,535
        ("invalid", "u1"),  # errors `invalid` since the last ok, at most 255
        ("state", "u1"),  # bits of `pit.health`
    ]
)
SIGNATURE = _record(  # ... and what else belongs to it
    [
        ("sum_y", "f8"),  # durations over calm ones, since `drag` left 0
        ("sum_z", "f8"),  # the same, standardised
        ("factor", "f8"),  # by which it had become slower when that was noticed
        ("half", "f8"),  # half way back, standardised
        ("back", "f8"),  # CUSUM of the way back
        ("allow", "f8"),  # failures a call that `rise` forgives
        ("coherence", "f8"),  # quality that was told over the expected one
        ("since", "i8"),  # us, of its pattern
        ("late", "i4"),  # calls in `sum_y`
        ("bad", "i4"),  # failures among `known` and before
        ("seen", "i4"),  # calls since `rise` left 0
        ("met", "i4"),  # failures among them
        ("clean", "i4"),  # calls without failure while it is failing
        ("pattern", "u1"),
        ("last_error", "u1"),
    ]
)
HEALING = _record(  # one action that was to mend something
    [
        ("time", "i8"),  # us
        ("ended", "i8"),  # us, NEVER = not yet
        ("before", "f8"),
        ("after", "f8"),
        ("subject", "i4"),  # row of the record of health
        ("kind", "i4"),
    ]
)
COMMAND = _record([(name, "i4") for name in ("kind", "call", "task", "function", "variant", "pool", "copy", "model")])
EVENT = _record(
    [("kind", "i4"), ("subject", "i4"), ("error", "i4"), ("elapsed", "i8"), ("quality", "f8"), ("size", "i8"), ("price", "i8")]
)

pit_at = record_at(PIT)
event_at = record_at(EVENT)
task = table(PIT, "task_at", TASK)
successor = table(PIT, "succ_at", LINK)
predecessor = table(PIT, "pred_at", LINK)
artifact = table(PIT, "artifact_at", ARTIFACT)
store_of = table(PIT, "store_at", STORE)  # its only row is 0
flow = table(PIT, "flow_at", FLOW)
member_words = table(PIT, "members_at", MEMBERS)
follow = table(PIT, "follow_at", INDEX)  # row = model before * n_models + model: how often it has followed
ready = table(PIT, "ready_at", INDEX)  # those that are ready; behind them, at a look at slots, the late ones
near = table(PIT, "near_at", INDEX)
variant = table(PIT, "variant_at", VARIANT)  # row = function * 3 + variant
model = table(PIT, "model_at", MODEL)
copy = table(PIT, "copy_at", COPY)
call = table(PIT, "call_at", CALL)
vital = table(PIT, "vital_at", VITAL)  # row = function * 3 + variant, then one row for each pool
signature = table(PIT, "signature_at", SIGNATURE)  # the same rows
healing = table(PIT, "healing_at", HEALING)  # a ring
command = table(PIT, "command_at", COMMAND)


def whole_lines(size: int) -> int:
    """So many bytes, up to the next cache line: tables begin at one."""
    return -(-size // LINE) * LINE


def tables(
    tasks: int,
    edges: int,
    functions: int,
    models: int,
    copies: int,
    places: int,
    flows: int,
    follows: bool,
    twins: bool,
    store: bool = False,
) -> tuple[dict[str, int], int]:
    """Offsets of all tables for these capacities, and the bytes of record and tables together (a multiple of 64).

    `flows`: workflows of a stream, 1 if there is none.
    `follows`: whether which model follows which is counted (pre-warming). `twins`: whether tasks may take over outputs.
    `store`: whether artifacts lie in tiers.
    """
    rows = (
        ("variant_at", VARIANT, 3 * functions),
        ("model_at", MODEL, models),
        ("copy_at", COPY, copies),
        ("call_at", CALL, places),
        ("follow_at", INDEX, models * models if follows else 0),
        ("flow_at", FLOW, flows),
        ("store_at", STORE, 1 if store else 0),
        ("members_at", MEMBERS, -(-tasks // 64)),
        ("ready_at", INDEX, tasks),
        ("near_at", INDEX, tasks),
        ("vital_at", VITAL, 3 * functions + MAX_POOLS),
        ("signature_at", SIGNATURE, 3 * functions + MAX_POOLS),
        ("healing_at", HEALING, HEALINGS),
        ("task_at", TASK, tasks),
        ("artifact_at", ARTIFACT, tasks),
        ("succ_at", LINK, edges),
        ("pred_at", LINK, edges),
        (
            "command_at",
            COMMAND,
            3 * places + 2 * copies + 5 + (tasks if twins else 0) + (2 * tasks + TOLD_ROWS if store else 0),
        ),
    )
    offsets, end = {}, whole_lines(PIT.itemsize)
    for name, dtype, count in rows:
        offsets[name] = end
        end += whole_lines(dtype.itemsize * count)
    return offsets, end

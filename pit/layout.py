"""Every size, code and table of the Pit: the only place where such numbers stand.

The rule book (`pit/README.md`) is printed from these tables (`python -m pit.layout`), the kernels read
them as constants, and the observation's names, ranges and exposure classes come from here alone.
This module must know nothing but numbers: no state, no kernel, no level.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

# --------------------------------------------------------------------------- sizes
N_SLOTS = 16
N_VERBS = 7
N_GLOBAL_ACTIONS = 16
N_ACTIONS = N_SLOTS * N_VERBS + N_GLOBAL_ACTIONS  # 128
N_SLOT_FEATURES = 25
N_POOL_FEATURES = 8
N_GLOBAL_FEATURES = 48
MAX_POOLS = 8
MAX_PLACES = 64  # places of one pool
MAX_FUNCTIONS = 128
MAX_MODELS = 128
MAX_TASKS = 32_000  # task indices are int16 in the slot table of a run
POOL_OFFSET = N_SLOTS * N_SLOT_FEATURES  # 400
GLOBAL_OFFSET = POOL_OFFSET + MAX_POOLS * N_POOL_FEATURES  # 464
N_OBSERVATION = GLOBAL_OFFSET + N_GLOBAL_FEATURES  # 512

# --------------------------------------------------------------------------- actions
LITE, STANDARD, PREMIUM, QUEUE, HOLD, HEDGE, CANCEL = range(N_VERBS)
N_VARIANTS = 3  # the first three verbs
VERBS = ("lite", "standard", "premium", "queue", "hold", "hedge", "cancel")
WAIT = N_SLOTS * N_VERBS  # 112
GLOBAL_ACTIONS = ("wait", "back_off", "back_off_long", "skip", "refresh", "defer", "rule") + tuple(
    f"reserved_{i}" for i in range(9)
)
BACK_OFF, BACK_OFF_LONG, SKIP, REFRESH, DEFER = range(WAIT + 1, WAIT + 6)
ENABLED = VERBS + GLOBAL_ACTIONS[:6]  # what a system can enable, in the order of its bits; `wait` always is
DEFAULT_VERBS = ("lite", "standard", "premium", "hold")
WAIT_BIT = N_VERBS
SKIP_BIT, REFRESH_BIT, DEFER_BIT = (ENABLED.index(name) for name in ("skip", "refresh", "defer"))
MAX_PRIORITY = 3
# Numbers of a calibrated rule: for each verb a bias, a weight for each slot feature, one for each feature of each pool and one
# for each global; for each global action that a system can enable the same without slot features.
N_GLOBAL_WEIGHTS = 1 + MAX_POOLS * N_POOL_FEATURES + N_GLOBAL_FEATURES
N_VERB_WEIGHTS = N_SLOT_FEATURES + N_GLOBAL_WEIGHTS
N_RULE_GLOBALS = len(ENABLED) - WAIT_BIT
N_WEIGHTS = N_VERBS * N_VERB_WEIGHTS + N_RULE_GLOBALS * N_GLOBAL_WEIGHTS


def action_name(action: int) -> str:
    """`"slot 3: standard"`, `"wait"`: an action's name as people read it."""
    if action < WAIT:
        return f"slot {action // N_VERBS}: {VERBS[action % N_VERBS]}"
    return GLOBAL_ACTIONS[action - WAIT]


# --------------------------------------------------------------------------- events, commands, errors
EVENTS = (
    "arrive",
    "started",
    "loaded",
    "load_failed",
    "unloaded",
    "finished",
    "rejected",
    "tenant_load",
    "config_changed",
    "stream_closed",
    "output_changed",
)
(
    ARRIVE, STARTED, LOADED, LOAD_FAILED, UNLOADED, FINISHED, REJECTED, TENANT_LOAD, CONFIG_CHANGED, STREAM_CLOSED,
    OUTPUT_CHANGED,
) = range(11)  # fmt: skip
COMMANDS = ("start", "cancel", "load", "unload", "fetch", "store", "delete", "configure")
CMD_START, CMD_CANCEL, CMD_LOAD, CMD_UNLOAD, CMD_FETCH, CMD_STORE, CMD_DELETE, CMD_CONFIGURE = range(8)
ERRORS = ("ok", "error", "timeout", "throttled", "precondition", "access", "load", "invalid", "cancelled", "lost")
(
    OK, ERR_ERROR, ERR_TIMEOUT, ERR_THROTTLED, ERR_PRECONDITION, ERR_ACCESS, ERR_LOAD, ERR_INVALID, ERR_CANCELLED, ERR_LOST,
) = range(10)  # fmt: skip
WARNED_ERRORS = (ERR_PRECONDITION, ERR_ACCESS)  # the caller's own mistakes: each costs one warning

# --------------------------------------------------------------------------- states
TASK_STATES = ("blocked", "ready", "running", "done", "given_up")
BLOCKED, READY, RUNNING, DONE, GIVEN_UP = range(5)
TASK_CLASSES = ("plain", "held", "queued", "running")  # what an open task's slot is about
PLAIN, HELD, QUEUED, OVERDUE = range(4)
COPY_STATES = ("idle", "loading", "warm", "active", "cooldown")
IDLE, LOADING, WARM, ACTIVE, COOLDOWN = range(5)
TIERS = ("hot", "warm", "cold", "gone")  # where an artifact lies
TIER_HOT, TIER_WARM, TIER_COLD, TIER_GONE = range(4)
STATUSES = ("running", "solved", "failed", "expired")
ON, SOLVED, FAILED, EXPIRED = range(4)
OUTCOMES = ("none", "warm_start", "cold_start", "queued", "blocked", "failed", "denied", "waited")
OUT_NONE, OUT_WARM, OUT_COLD, OUT_QUEUED, OUT_BLOCKED, OUT_FAILED, OUT_DENIED, OUT_WAITED = range(8)
PATTERNS = ("none", "degradation", "api_change", "resonance", "recovery")
NO_PATTERN, DEGRADATION, API_CHANGE, RESONANCE, RECOVERY = range(5)
HEALING_ACTIONS = ("back_off", "fallback", "config_update", "adaptation")
BACKED_OFF, FELL_BACK, CONFIG_UPDATE, ADAPTATION = range(4)

# --------------------------------------------------------------------------- constants of the rules
TOLD_ROWS = 64  # where artifacts lie is told while fewer than 2 x tasks + so many commands wait to be carried out
NEED_READY, NEED_NEAR, NEED_LATER = 4, 2, 1  # what a reader counts that is ready, near, or neither
PRIOR_COUNT = 2.0  # pseudo-observations behind every running ratio
PRIOR_SQUARE = PRIOR_COUNT * (1.0 + 0.25 * 0.25)  # their summed squares: a spread of a quarter
EWMA = 0.1  # weight of the newest outcome in failure and error averages
UTILISATION_WINDOW = 4.0  # mean calls
RANK_DRIFT = 0.10  # an estimate must have moved by this share before ranks are recomputed
RANK_EVERY_MIN = 8  # finishes between two recomputations, at least; or n // RANK_EVERY_SHARE
RANK_EVERY_SHARE = 16
OVERRUN_FACTOR = 1.5
OVERRUN_SPREADS = 2.0
MAX_DOUBLINGS = 16  # of a back-off
PREWARM_AFTER = 2  # times that a model must have followed another before it is loaded ahead
ZERO_TIME_PER_OPEN = 4  # a wait is forced after 4 x open tasks + 64 actions at one time
ZERO_TIME_BASE = 64
# Health: see section 8 of the rule book.
CHANCE_PRIOR, CHANCE_COUNT, CHANCE_SHARE = 0.06, 2.0, 4.0  # failures, calls behind a pool's chance; calls behind a row's
CHANCE_MEMORY = 0.9  # what each further call leaves of the weight of those before
KNOWN_BAD, KNOWN_CALLS = 0.5, 10.0  # failures and calls behind the rate that is known of a record
RISE_FACTOR, RISE_MARGIN, RISE_LIMIT = 2.0, 0.05, 4.0  # CUSUM of failures: over how many times the known rate, how far
CLEAN_CALLS = 25  # in a row until a failing record has recovered
CALM_FLOOR, CALM_COUNT = 0.1, 16.0  # least spread over the ratio; observations from which a suspicion freezes the estimate
Z_MOST, DRAG_ALLOWED, DRAG_LIMIT, BACK_LIMIT = 4.0, 0.7, 12.0, 12.0  # CUSUMs of standardised durations, there and back
LEVEL_EWMA, LEVEL_MOST = 0.25, 8.0  # of durations over calm ones
ADAPT_COUNT = 6.0  # observations that an adapted estimate counts for
TOGETHER = 8.0  # mean calls within which troubles of two pools are one
INVALID_CALLS = 2  # errors `invalid` in a row from which an API has changed
HEALINGS = 16  # actions that the healing record keeps
SCORE_WEIGHTS = (1.0, 1.0, 2.0)  # efficiency, stability, optimization where no level sets its own
NEVER = 2**62  # a time that does not come, microseconds
MAX_OCTAVE = 15  # of a workflow's remaining work over the mean call
URGENCY_SCALE = 8.0  # a weight of 1 with eight mean calls left is half way
MAX_WORKFLOWS = 10_000  # of one stream
# Half-octaves of rank / LB: bucket = how many of these edges are larger than the ratio.
RANK_EDGES = tuple(2.0 ** (1 - k // 2) * (1.0 if k % 2 == 0 else 0.7071067811865476) for k in range(20))

# --------------------------------------------------------------------------- features
HIDDEN, PARTIAL, FULL = range(3)
EXPOSURES = ("hidden", "partial", "full")


class Feature(NamedTuple):
    """One column of the observation (float32): what it is, its range and from which exposure on it is seen."""

    name: str
    formula: str
    low: float
    high: float
    exposure: int


SLOT_FEATURES = (
    Feature("ready_count", "c / (c + 4), c = members; 0 only in an empty slot", 0, 1, HIDDEN),
    Feature("rank", "min(1, rank / cp_left); 0 if order_hidden or cp_left <= 0", 0, 1, HIDDEN),
    Feature(
        "slack_or_urgency",
        "clip((deadline - now - rank) / LB, -1, 1); 1 without deadline; in a stream x / (x + 1), x = 8 x urgency(its workflow) x unit",
        -1,
        1,
        HIDDEN,
    ),
    Feature(
        "influence",
        "x / (x + 1), x = influence(head) x tasks of its workflow: what its quality means for the required sinks",
        0,
        1,
        HIDDEN,
    ),
    Feature("duration", "sq(est(standard))", 0, 1, HIDDEN),
    Feature("spread", "clip(spread(standard) / est(standard), 0, 1)", 0, 1, HIDDEN),
    Feature("delay_lite", "-1 if lite is not usable, else sq(delay(lite))", -1, 1, PARTIAL),
    Feature("delay_standard", "as delay_lite, for standard", -1, 1, PARTIAL),
    Feature("delay_premium", "as delay_lite, for premium", -1, 1, PARTIAL),
    Feature("busy_copy_free", "sq(free_in(standard's model)); 1 if there is no busy copy or no model", 0, 1, PARTIAL),
    Feature("copies", "c / (c + 2), c = copies of standard's model in states loading, warm, active", 0, 1, PARTIAL),
    Feature("ready_demand", "c / (c + 4), c = ready tasks whose standard model is the same (0 if no model)", 0, 1, PARTIAL),
    Feature("near_demand", "x / (x + 4), x = near(standard's model) (0 if no model)", 0, 1, PARTIAL),
    Feature(
        "victim_demand",
        "x / (x + 4), x = sum over copies that starting standard would evict of ready demand + near of their model",
        0,
        1,
        PARTIAL,
    ),
    Feature("duration_lite", "contrast(est(lite), est(standard)); 0 if not usable", -1, 1, HIDDEN),
    Feature("duration_premium", "contrast(est(premium), est(standard)); 0 if not usable", -1, 1, HIDDEN),
    Feature("quality_lite", "quality(lite) - quality(standard); 0 if not usable", -1, 1, HIDDEN),
    Feature("quality_premium", "quality(premium) - quality(standard); 0 if not usable", -1, 1, HIDDEN),
    Feature("price_lite", "contrast(est * price of lite, est * price of standard); 0 if not usable or both 0", -1, 1, HIDDEN),
    Feature("price_premium", "as price_lite, for premium", -1, 1, HIDDEN),
    Feature("attempts", "a / (a + 2), a = failed attempts of the head", 0, 1, HIDDEN),
    Feature(
        "overrun",
        "max(0, contrast(now - start, its own est)) of the head's oldest call in flight; 0 if that has not started",
        0,
        1,
        HIDDEN,
    ),
    Feature(
        "freshness",
        "x = largest min(1, (now - created) / fresh) over done inputs whose function has fresh > 0; if x is 0: -unit / (unit + fresh) of the head's own function, 0 if that does not age",
        -1,
        1,
        HIDDEN,
    ),
    Feature(
        "status",
        "1 held or queued, 0.5 running, else 0 required, -1 optional; with `skip` enabled -0.5 if that would give up another",
        -1,
        1,
        HIDDEN,
    ),
    Feature(
        "code_or_twins",
        "the function's code; without hidden order c / (c + 4), c = twins of the head neither done nor given up, negative if one of them is in flight",
        -1,
        1,
        HIDDEN,
    ),
)
POOL_FEATURES = (
    Feature("capacity", "places / (places + 8)", 0, 1, PARTIAL),
    Feature("free", "free places / places", 0, 1, PARTIAL),
    Feature("loading", "c / (c + 2), c = copies in state loading", 0, 1, PARTIAL),
    Feature("warm_idle", "c / (c + 2), c = copies in state warm", 0, 1, PARTIAL),
    Feature("queue", "c / (c + 4), c = tasks queued in it", 0, 1, PARTIAL),
    Feature("failures", "chance that its next call fails, as section 8 has it", 0, 1, FULL),
    Feature("utilisation", "utilisation average at now", 0, 1, FULL),
    Feature("health", "(1 - failures) / max(1, level), level: durations over calm ones; section 8", 0, 1, FULL),
)
GLOBAL_FEATURES = (
    Feature("elapsed", "e / (e + LB), e = now - t0", 0, 1, HIDDEN),
    Feature("to_deadline", "clip((deadline - now) / (deadline - t0), -1, 1); 1 without deadline", -1, 1, HIDDEN),
    Feature("work_left", "clip(work_left / work_total, 0, 1)", 0, 1, HIDDEN),
    Feature("critical_path_left", "cp_left / (cp_left + LB)", 0, 1, HIDDEN),
    Feature("tasks_left", "unfinished required tasks / required tasks", 0, 1, HIDDEN),
    Feature("open_tasks", "c / (c + 8), c = ready tasks", 0, 1, HIDDEN),
    Feature("running", "c / (c + 8), c = calls in flight", 0, 1, HIDDEN),
    Feature("overrun", "c / (c + 2), c = started calls with now - start > 1.5 x est + 2 x spread", 0, 1, HIDDEN),
    Feature(
        "money_left",
        "x / (x + cost_left), x = max(0, money - spent - committed); 0 if both are 0; 1 without limit",
        0,
        1,
        HIDDEN,
    ),
    Feature("tokens_left", "least credit / (burst x period) of the rate-limited pools; 1 if there is none", 0, 1, HIDDEN),
    Feature(
        "retries_left", "1 - (largest attempts of an unfinished task) / max_attempts, at least 0; 1 if unlimited", 0, 1, HIDDEN
    ),
    Feature("actions_since_clock", "a / (a + 8), a = actions since the clock moved", 0, 1, HIDDEN),
    *(Feature(f"last_{o}", f"1 if the last outcome is {o}, else 0", 0, 1, HIDDEN) for o in OUTCOMES),
    Feature("hint_cold", "1 if the last finished call waited for a load", 0, 1, HIDDEN),
    Feature("hint_queued", "1 if the last finished call came from the queue", 0, 1, HIDDEN),
    Feature("hint_throttled", "1 if the last finished call ended with error throttled", 0, 1, HIDDEN),
    Feature("hint_stale", "1 if the last finished call used a stale input", 0, 1, HIDDEN),
    Feature("score_base", "sum of quality of done required sinks / number of required sinks", 0, 1, HIDDEN),
    Feature("score_efficiency", "clip(1 - spent / upper_cost, 0, 1); 1 if upper_cost <= 0", 0, 1, PARTIAL),
    Feature("score_stability", "max(0, 1 - warning_weight x warnings)", 0, 1, HIDDEN),
    Feature(
        "score_optimization",
        "min(1, LB / (e + max(cp_left, work_left / all places))); in a stream min(1, sum of weight x LB(g) / sum of weight x flow(g)), flow(g) = end - arrival, or now - arrival + remaining(g) / all places; each sum in order of g",
        0,
        1,
        PARTIAL,
    ),
    Feature("warnings", "w / (w + 4)", 0, 1, HIDDEN),
    Feature("next_event", "sq(expected time to the next event); 1 if none is expected", 0, 1, FULL),
    Feature(
        "first_slot_warm",
        "0 if standard of slot 0 is not usable, would begin by case (a) or has no model, else sq(free_in(its model)), 1 if none or no slot",
        0,
        1,
        FULL,
    ),
    Feature(
        "first_slot_room",
        "0 if slot 0's standard finds its places free, else sq(time until a call of the pool that lacks them is expected to end; `unit` if none is in flight; of two such pools the larger); 1 if no slot",
        0,
        1,
        FULL,
    ),
    Feature("pools_full", "pools without a free place / pools", 0, 1, PARTIAL),
    Feature("duration_error", "average |elapsed / est - 1|, each at most 1", 0, 1, FULL),
    Feature("load_error", "the same for loads", 0, 1, FULL),
    Feature("failure_error", "average |failed - predicted|", 0, 1, FULL),
    Feature("workflows", "c / (c + 4), c = active workflows; 0 once the status is not running", 0, 1, HIDDEN),
    Feature("arrival_rate", "LB / (LB + m), m = mean gap between arrivals; 0 before the second arrival", 0, 1, HIDDEN),
    Feature(
        "arrival_cv",
        "c / (c + 1), c = sqrt(max(SS / k - m x m, 0)) / m, SS the sum of the k gaps' squares, m their mean; 0 for k < 2 or m = 0",
        0,
        1,
        HIDDEN,
    ),
    Feature("stream_open", "1 while more workflows may come, else 0", 0, 1, HIDDEN),
    Feature("tail_tasks", "c / (c + 8), c = open tasks that found no slot", 0, 1, HIDDEN),
    Feature("tail_work", "w / (w + LB), w = sum of their work", 0, 1, HIDDEN),
    Feature("tail_rank", "min(1, highest rank among them / cp_left); 0 if none or cp_left <= 0", 0, 1, HIDDEN),
    Feature("tail_age", "sq(now - earliest ready among them); 0 if none", 0, 1, HIDDEN),
    Feature("phase", "clip(1 - cp_left / cp_start, 0, 1); 0 if cp_start <= 0", 0, 1, HIDDEN),
    Feature("goals_reached", "done required sinks / required sinks", 0, 1, HIDDEN),
    Feature("tasks", "n / (n + 64), n = tasks", 0, 1, HIDDEN),
    Feature("places", "n / (n + 8), n = all places", 0, 1, HIDDEN),
)
assert (len(SLOT_FEATURES), len(POOL_FEATURES), len(GLOBAL_FEATURES)) == (
    N_SLOT_FEATURES,
    N_POOL_FEATURES,
    N_GLOBAL_FEATURES,
)


def columns() -> list[tuple[str, Feature]]:
    """All 512 columns in order, as (full name, feature): `slot3.rank`, `pool0.free`, `elapsed`."""
    table = [(f"slot{s}.{f.name}", f) for s in range(N_SLOTS) for f in SLOT_FEATURES]
    table += [(f"pool{p}.{f.name}", f) for p in range(MAX_POOLS) for f in POOL_FEATURES]
    return table + [(f.name, f) for f in GLOBAL_FEATURES]


def table_hashes() -> dict[str, str]:
    """sha256 of the observation, action and rules tables: a bundle runs only where all three are equal."""

    def digest(value: object) -> str:
        return hashlib.sha256(repr(value).encode()).hexdigest()

    constants = (
        PRIOR_COUNT, PRIOR_SQUARE, EWMA, UTILISATION_WINDOW, RANK_DRIFT, RANK_EVERY_MIN, RANK_EVERY_SHARE,
        OVERRUN_FACTOR, OVERRUN_SPREADS, MAX_DOUBLINGS, PREWARM_AFTER, ZERO_TIME_PER_OPEN, ZERO_TIME_BASE, RANK_EDGES,
        CHANCE_PRIOR, CHANCE_COUNT, CHANCE_SHARE, CHANCE_MEMORY, KNOWN_BAD, KNOWN_CALLS, RISE_FACTOR, RISE_MARGIN,
        RISE_LIMIT, CLEAN_CALLS, CALM_FLOOR, CALM_COUNT, Z_MOST, DRAG_ALLOWED, DRAG_LIMIT, BACK_LIMIT, LEVEL_EWMA,
        LEVEL_MOST, ADAPT_COUNT, TOGETHER, INVALID_CALLS,
    )  # fmt: skip
    return {
        "observation": digest([(n, tuple(f)) for n, f in columns()]),
        "action": digest((VERBS, GLOBAL_ACTIONS, N_SLOTS)),
        "rules": digest((EVENTS, COMMANDS, ERRORS, TASK_STATES, COPY_STATES, constants)),
    }


def feature_table() -> str:
    """The feature tables of the rule book, as Markdown."""
    blocks = []
    for title, features in (
        (f"Slot ({N_SLOTS} x {N_SLOT_FEATURES})", SLOT_FEATURES),
        (f"Pool ({MAX_POOLS} x {N_POOL_FEATURES})", POOL_FEATURES),
        (f"Global ({N_GLOBAL_FEATURES})", GLOBAL_FEATURES),
    ):
        lines = [f"**{title}**", "", "| # | name | value | range | seen from |", "|---|---|---|---|---|"]
        for i, f in enumerate(features):
            formula = f.formula.replace("|", "\\|")
            lines.append(f"| {i} | `{f.name}` | {formula} | [{f.low:g}, {f.high:g}] | {EXPOSURES[f.exposure]} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(feature_table())

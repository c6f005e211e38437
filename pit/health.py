"""Health of pools and variants: the chance that a call fails, whether failures or durations have left what is usual (CUSUMs,
after Page, Biometrika 41, 1954), patterns of trouble, and what healing has achieved.

It observes and never acts. Variants and pools have records of the same kind: rows 3f + v, then one row for each pool.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import (
    ADAPTATION,
    API_CHANGE,
    BACK_LIMIT,
    CALM_COUNT,
    CALM_FLOOR,
    CHANCE_COUNT,
    CHANCE_MEMORY,
    CHANCE_PRIOR,
    CHANCE_SHARE,
    CLEAN_CALLS,
    DEGRADATION,
    DRAG_ALLOWED,
    DRAG_LIMIT,
    ERR_ERROR,
    ERR_INVALID,
    ERR_LOAD,
    ERR_TIMEOUT,
    EWMA,
    FULL,
    HEALINGS,
    INVALID_CALLS,
    KNOWN_BAD,
    KNOWN_CALLS,
    LEVEL_EWMA,
    LEVEL_MOST,
    NEVER,
    NO_PATTERN,
    OK,
    RECOVERY,
    RESONANCE,
    RISE_FACTOR,
    RISE_LIMIT,
    RISE_MARGIN,
    TOGETHER,
    Z_MOST,
)
from pit.state import healing, signature, variant, vital

FAILING, SLOW, CHANGED = 1, 2, 4  # bits of a record's state; CHANGED: its pattern is `api_change`
TROUBLE = FAILING | SLOW
ROW_SLOW, ROW_EASED, POOL_SLOW, POOL_EASED = 1, 2, 4, 8  # what one duration can change


@kernel
def relative_error(average, elapsed, estimate):
    """The running average of |elapsed / estimate - 1|, each at most 1, after one more observation."""
    if elapsed <= 0 or estimate <= 0.0:
        return average
    return average + EWMA * (min(1.0, abs(elapsed / estimate - 1.0)) - average)


@kernel
def row_of(s, p):
    """The row of pool p's record."""
    return 3 * s.n_functions + p


# --------------------------------------------------------------------------- at the arrival
@kernel
def begin(s):
    """The first workflow is there: nothing has happened yet, and estimates are what is calm."""
    s.watched |= (s.heal == 1) | (s.exposure == FULL)
    s.n_healings = 0
    s.open_healings = 0
    for p in range(s.n_pools):
        clear_record(s, row_of(s, p))
        note_chance(s, p)
        note_health(s, p)
    if s.watched == 1:
        for r in range(3 * s.n_functions):
            clear_record(s, r)
            if variant(s, r).usable == 1:
                calm_down(s, r)


@kernel
def clear_record(s, r):
    """Row r as it stands before any call."""
    h = vital(s, r)
    h.calls = 0.0
    h.fails = 0.0
    h.rise = 0.0
    h.drag = 0.0
    h.level = 1.0
    h.known = 0
    h.in_row = 0
    h.invalid = 0
    h.state = 0
    if s.watched == 1:
        g = signature(s, r)
        g.coherence = 1.0
        g.since = 0
        g.factor = 1.0
        g.bad = 0
        g.clean = 0
        g.pattern = NO_PATTERN
        g.last_error = OK


@kernel
def calm_down(s, row):
    """A variant takes its estimate as calm."""
    h = vital(s, row)
    v = variant(s, row)
    h.calm = v.ratio
    h.scale = 1.0 / max(v.deviation, CALM_FLOOR * v.ratio)


# --------------------------------------------------------------------------- chances
@kernel
def note_chance(s, p):
    """The chance that the next call of pool p fails."""
    h = vital(s, row_of(s, p))
    s.pools[p].failures = (CHANCE_PRIOR + h.fails) / (CHANCE_COUNT + h.calls)


@kernel
def chance(s, r):
    """The chance that the next call of the variant or pool of row r fails; a variant's leans on that of its pool."""
    first = 3 * s.n_functions
    if r >= first:
        return s.pools[r - first].failures
    h = vital(s, r)
    return (CHANCE_SHARE * s.pools[variant(s, r).pool].failures + h.fails) / (CHANCE_SHARE + h.calls)


@kernel
def count(h, failed):
    """One more call of a record, failed = 1.0 or 0.0."""
    h.calls = CHANCE_MEMORY * h.calls + 1.0
    h.fails = CHANCE_MEMORY * h.fails + failed


@kernel
def outcome(s, p, row, error):
    """A call of variant `row` in pool p has ended: prediction, counts, failures. Whether it shows that an API has changed."""
    failed = 1.0 if error != OK else 0.0
    q = row_of(s, p)
    if s.watched == 0:
        count(vital(s, q), failed)
        note_chance(s, p)
        return False
    s.failure_error += EWMA * (abs(failed - chance(s, row)) - s.failure_error)
    h = vital(s, row)
    count(h, failed)
    count(vital(s, q), failed)
    note_chance(s, p)
    if error == OK:
        h.in_row = 0
        h.invalid = 0
        if h.state & CHANGED != 0:
            set_pattern(s, row, RECOVERY)
        if s.open_healings > 0:
            end_healings(s, row, q, -1.0)
        without_failure(s, row)
        without_failure(s, q)
        return False
    h.in_row = min(h.in_row + 1, 65_535)
    signature(s, row).last_error = error
    signature(s, q).last_error = error
    changed = False
    if error == ERR_INVALID:
        changed = invalid_again(s, row)
    if error == ERR_ERROR or error == ERR_TIMEOUT or error == ERR_LOAD:
        look_at_rise(s, row, 1.0)
        look_at_rise(s, q, 1.0)
    return changed


# --------------------------------------------------------------------------- failures
@kernel
def without_failure(s, r):
    """A call of row r has not failed."""
    h = vital(s, r)
    if h.rise == 0.0:
        h.known += 1
    else:
        look_at_rise(s, r, 0.0)


@kernel
def look_at_rise(s, r, sick):
    """CUSUM of failures over row r's usual rate, sick = 1.0 or 0.0; while it is failing, calls without failure in a row."""
    h = vital(s, r)
    g = signature(s, r)
    if h.state & FAILING != 0:
        g.clean = g.clean + 1 if sick == 0.0 else 0
        if g.clean >= CLEAN_CALLS:
            h.rise = 0.0
            leave_trouble(s, r, FAILING)
        return
    if h.rise == 0.0:
        g.allow = RISE_FACTOR * (KNOWN_BAD + g.bad) / (KNOWN_CALLS + h.known) + RISE_MARGIN
        g.seen = 0
        g.met = 0
    h.rise = max(0.0, h.rise + sick - g.allow)
    g.seen += 1
    g.met += 1 if sick == 1.0 else 0
    if h.rise == 0.0:
        h.known += g.seen
        g.bad += g.met
    elif h.rise > RISE_LIMIT:
        g.clean = 0
        enter_trouble(s, r, FAILING)


@kernel
def invalid_again(s, row):
    """One more error `invalid` of a variant; whether it shows that its API has changed."""
    h = vital(s, row)
    h.invalid = min(h.invalid + 1, 255)
    if h.invalid != INVALID_CALLS:
        return False
    set_pattern(s, row, API_CHANGE)
    return True


@kernel
def output_changed(s, row):
    """Outputs of a variant look different; whether that is news."""
    h = vital(s, row)
    if h.invalid >= INVALID_CALLS:
        return False
    h.invalid = INVALID_CALLS - 1
    return invalid_again(s, row)


@kernel
def configured(s, row):
    """A variant was configured anew: what was known of its failures is void."""
    h = vital(s, row)
    h.invalid = 0
    h.calls = 0.0
    h.fails = 0.0
    if h.state & CHANGED != 0:
        set_pattern(s, row, RECOVERY)


# --------------------------------------------------------------------------- durations
@kernel
def duration(s, p, row, x):
    """One more observed / hinted ratio x of a variant in pool p: what it changes, bits ROW_SLOW to POOL_EASED."""
    h = vital(s, row)
    y = x / h.calm
    z = min(max((x - h.calm) * h.scale, -Z_MOST), Z_MOST)
    q = row_of(s, p)
    return look_at_drag(s, row, y, z) | look_at_drag(s, q, y, z) << 2


@kernel
def look_at_drag(s, r, y, z):
    """CUSUM of standardised durations of row r, while it is slow of the way back; 1 if it is slow from now, 2 if no more."""
    h = vital(s, r)
    h.level += LEVEL_EWMA * (min(y, LEVEL_MOST) - h.level)
    before = h.drag
    if h.state & SLOW != 0:
        g = signature(s, r)
        g.back = max(0.0, g.back + g.half - z)
        if g.back <= BACK_LIMIT:
            return 0
        h.drag = 0.0
        leave_trouble(s, r, SLOW)
        return 2
    h.drag = max(0.0, before + z - DRAG_ALLOWED)
    if h.drag == 0.0:
        return 0
    g = signature(s, r)
    g.late = 1 if before == 0.0 else g.late + 1
    g.sum_y = y if before == 0.0 else g.sum_y + y
    g.sum_z = z if before == 0.0 else g.sum_z + z
    if h.drag <= DRAG_LIMIT:
        return 0
    g.factor = g.sum_y / g.late
    g.half = g.sum_z / g.late / 2.0
    g.back = 0.0
    enter_trouble(s, r, SLOW)
    return 1


@kernel
def settle_down(s, p, row):
    """After a duration: the estimate of a variant that is not suspected of being late is calm."""
    h = vital(s, row)
    b = vital(s, row_of(s, p))
    if (h.state | b.state) & SLOW == 0 and (h.drag == 0.0 or variant(s, row).n < CALM_COUNT):
        calm_down(s, row)


@kernel
def note_health(s, p):
    """What is seen of pool p: less for failures, and less for durations over calm ones."""
    pool = s.pools[p]
    pool.health = (1.0 - pool.failures) / max(1.0, vital(s, row_of(s, p)).level)


@kernel
def cohere(s, row, p, quality):
    """A quality that was told, over the expected one, of a call of a variant in pool p."""
    g = signature(s, row)
    g.coherence += LEVEL_EWMA * (min(1.0, quality) - g.coherence)
    g = signature(s, row_of(s, p))
    g.coherence += LEVEL_EWMA * (min(1.0, quality) - g.coherence)


# --------------------------------------------------------------------------- patterns
@kernel
def set_pattern(s, r, pattern):
    h = vital(s, r)
    h.state = h.state & TROUBLE | (CHANGED if pattern == API_CHANGE else 0)
    g = signature(s, r)
    g.pattern = pattern
    g.since = s.now


@kernel
def enter_trouble(s, r, bit):
    """Row r is failing, or slow, from now on."""
    h = vital(s, r)
    before = h.state & TROUBLE
    h.state |= bit
    if before == 0:
        set_pattern(s, r, DEGRADATION)
        if r >= 3 * s.n_functions:
            resonate(s, r)


@kernel
def leave_trouble(s, r, bit):
    """Row r is failing, or slow, no more."""
    h = vital(s, r)
    h.state &= ~bit
    if h.state & TROUBLE == 0:
        set_pattern(s, r, RECOVERY)


@kernel
def resonate(s, r):
    """The pool of row r has come into trouble: so have others just now, it may be the same one."""
    first = 3 * s.n_functions
    for q in range(first, first + s.n_pools):
        g = signature(s, q)
        if q != r and vital(s, q).state & TROUBLE != 0 and s.now - g.since <= TOGETHER * s.unit:
            g.pattern = RESONANCE
            signature(s, r).pattern = RESONANCE


# --------------------------------------------------------------------------- healing record
@kernel
def note_healing(s, kind, r, before):
    """An action that is to mend row r's variant or pool; the oldest one leaves the record."""
    if s.watched == 0:
        return
    h = healing(s, s.n_healings % HEALINGS)
    if s.n_healings < HEALINGS or h.ended < NEVER:
        s.open_healings += 1
    s.n_healings += 1
    h.time = s.now
    h.ended = NEVER
    h.before = before
    h.after = 0.0
    h.subject = r
    h.kind = kind


@kernel
def end_healings(s, row, q, error):
    """A call of variant `row` in the pool of row q was ok: what the open actions on either have achieved. Those about
    estimates look at `error`, that of the estimate, the others (error < 0) at the chance of a failure."""
    for k in range(min(s.n_healings, HEALINGS)):
        h = healing(s, k)
        if h.ended == NEVER and (h.subject == row or h.subject == q) and (h.kind == ADAPTATION) == (error >= 0.0):
            h.ended = s.now
            h.after = error if error >= 0.0 else chance(s, h.subject)
            s.open_healings -= 1

"""The old model's stages over the engine's memory: which are due, what an action does, what is shown.

Rules: `fq_env/README.md`, section 7. It reads the Pit and writes nothing of it but warnings and the outcome; of the world it
counts steps and says who sits one out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fq_env.sizes import N_STAGES
from fq_env.state import byte_at, engine_at, integer_at, world_at
from pit.compiled import entry, kernel
from pit.layout import (
    N_ACTIONS,
    N_OBSERVATION,
    N_SLOT_FEATURES,
    N_SLOTS,
    N_VERBS,
    ON,
    OUT_BLOCKED,
    PLAIN,
    SLOT_FEATURES,
    STANDARD,
    WAIT,
)
from pit.memory import clear, copy_bytes, put, put_byte, record_at
from pit.observation import encode
from pit.scales import count4
from pit.slots import refresh_slots, wait_legal
from pit.state import pit_at, task

ALLOCATE, VALIDATE, INVOKE, STORE, TRACK, RELEASE = range(N_STAGES)
TAKE, SHOW = range(2)
SITS_OUT = 2  # of a world's `pending`: the engine's next step leaves this environment as it is
# The six features that compare a slot's variants say nothing where `standard` is the only one: they name the stage due.
STAGE_COLUMN = [f.name for f in SLOT_FEATURES].index("duration_lite")
_SLOT_BYTES = 4 * N_SLOT_FEATURES
_OBS_BYTES = 4 * N_OBSERVATION

LAYER = np.dtype([(name, "i8") for name in ("engine", "ledger", "obs", "masks")])  # addresses; the ledger's offset
LEDGER = np.dtype(  # behind an environment's world; a byte per task follows: the stage that is due for it
    [
        ("closed", "i4"),  # calls that were released
        ("stored", "i4"),  # calls that are to be tracked
        ("tracked", "i4"),  # calls that are to be released
        ("blocked", "i4"),  # the last action was illegal
    ]
)
_LEDGER_BYTES = LEDGER.itemsize
layer_at = record_at(LAYER)
ledger_at = record_at(LEDGER)


def ledger_size(tasks: int) -> int:
    """Bytes of a ledger, a multiple of 64."""
    return -(-(LEDGER.itemsize + tasks) // 64) * 64


@kernel
def stage_of(ledger, i):
    """The stage that is due for ready task i, as a record with the byte `x`."""
    return byte_at(ledger + _LEDGER_BYTES + i)


@kernel
def ended(s, b):
    """Calls that have ended and are not stored yet."""
    return s.next_call - s.n_calls - b.closed - b.stored - b.tracked


@kernel
def groups(s, b):
    """How many slots the ended calls fill: one for each stage that some of them are due for."""
    if s.status != ON:
        return 0
    return (ended(s, b) > 0) + (b.stored > 0) + (b.tracked > 0)


@kernel
def group(s, b, k):
    """(stage, members) of the k-th of these slots: to be stored first, then to be tracked, then to be released."""
    n = ended(s, b)
    if n > 0:
        if k == 0:
            return STORE, n
        k -= 1
    if b.stored > 0:
        if k == 0:
            return TRACK, np.int64(b.stored)
    return RELEASE, np.int64(b.tracked)


@kernel
def due(s, b, ledger, j):
    """The stage that is legal in slot j, -1 if none is; while calls are to be closed, nothing of others may be done."""
    k = groups(s, b)
    if k > 0:
        if j < k:
            return group(s, b, j)[0]
        return -1
    if s.status == ON and j < s.n_slots and (s.slots[j].legal >> STANDARD) & 1 == 1:
        return np.int64(stage_of(ledger, s.slots[j].head).x)
    return -1


@kernel
def may_wait(s, b):
    """Whether `wait` is legal: it is in the Pit, and no call is to be closed."""
    return groups(s, b) == 0 and wait_legal(s)


@kernel
def made_legal(s, b, ledger, action):
    """The action, or if it is illegal `wait`, or else the first legal one; noted and warned of."""
    if action == WAIT and may_wait(s, b):
        return action
    if action >= 0 and action < N_SLOTS * N_VERBS and due(s, b, ledger, action // N_VERBS) == action % N_VERBS:
        return action
    s.warnings += 1
    b.blocked = 1
    if may_wait(s, b):
        return WAIT
    for j in range(N_SLOTS):
        stage = due(s, b, ledger, j)
        if stage >= 0:
            return j * N_VERBS + stage
    return WAIT


@kernel
def take_one(x, e, i):
    """Environment i's action: a stage that the engine knows nothing of is done here, all else becomes an action of the Pit."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    if w.pending == 1:
        return
    ledger = base + x.ledger
    b = ledger_at(ledger)
    refresh_slots(s)
    chosen = integer_at(e.actions + 8 * i)
    b.blocked = 0
    action = made_legal(s, b, ledger, chosen.x)
    if action == WAIT:
        chosen.x = WAIT
        return
    j = action // N_VERBS
    stage = action % N_VERBS
    if stage == INVOKE:
        stage_of(ledger, s.slots[j].head).x = ALLOCATE
        chosen.x = j * N_VERBS + STANDARD
        return
    if stage < INVOKE:
        stage_of(ledger, s.slots[j].head).x = stage + 1
    elif stage == STORE:
        b.stored += 1
    elif stage == TRACK:
        b.stored -= 1
        b.tracked += 1
    else:
        b.tracked -= 1
        b.closed += 1
    w.steps += 1
    w.pending = SITS_OUT


@kernel
def put_stage(at, stage):
    """The stage that is due in the slot at float address `at`."""
    for k in range(N_STAGES):
        put(at, STAGE_COLUMN + k, 1.0 if k == stage else 0.0)


@kernel
def show_one(x, e, i):
    """Observation and mask of environment i: the Pit's, with the ended calls as slots before its own; those that then find no
    room are not shown. After the end they are the Pit's."""
    base = e.memory + i * e.stride
    s = pit_at(base)
    w = world_at(base + s.size)
    ledger = base + x.ledger
    b = ledger_at(ledger)
    if w.pending == SITS_OUT:
        w.pending = 0
    elif w.steps == 0:
        clear(ledger, e.stride - x.ledger)
    if b.blocked == 1:
        s.outcome = OUT_BLOCKED
    out = x.obs + i * _OBS_BYTES
    mask = x.masks + i * N_ACTIONS
    encode(s, out, mask, 1)
    if w.pending == 1:
        return
    k = groups(s, b)
    shown = min(s.n_slots, N_SLOTS - k)
    for j in range(shown - 1, -1, -1):
        at = out + (j + k) * _SLOT_BYTES
        if k > 0:
            copy_bytes(at, out + j * _SLOT_BYTES, _SLOT_BYTES)
        head = s.slots[j].head
        put_stage(at, np.int64(stage_of(ledger, head).x) if task(s, head).mark == PLAIN else -1)
    for j in range(k):
        stage, members = group(s, b, j)
        at = out + j * _SLOT_BYTES
        clear(at, _SLOT_BYTES)
        put(at, 0, count4(members))
        put_stage(at, stage)
    clear(mask, N_ACTIONS)
    for j in range(shown + k):
        stage = due(s, b, ledger, j)
        if stage >= 0:
            put_byte(mask, j * N_VERBS + stage, 1)
    put_byte(mask, WAIT, may_wait(s, b))


@entry
def layer(address: Any, operation: Any) -> Any:
    """One operation for all environments: TAKE before the engine's step, SHOW after it (and after a reset)."""
    x = layer_at(address)
    e = engine_at(x.engine)
    for i in range(e.n):
        if operation == TAKE:
            take_one(x, e, i)
        else:
            show_one(x, e, i)
    return 0

"""The networks' arithmetic, compiled: one call from an observation and a mask to logits and an action.

A product reads no weight of an input that is 0: half of the inputs behind a ReLU, and features that say nothing. Reading
weights is what most of a decision's time goes to, all the more where others have used the processor's caches in the meantime.
Terms are added in one order on every machine. What stands here must know nothing of files, names and who asks.
"""

from __future__ import annotations

import math

import numpy as np

from pit.compiled import kernel, wide_entry
from pit.layout import N_ACTIONS, N_GLOBAL_ACTIONS, N_OBSERVATION, N_SLOT_FEATURES, N_SLOTS, N_VERBS, POOL_OFFSET, WAIT

N_CONTEXT = N_OBSERVATION - POOL_OFFSET  # 112: the features of pools and globals


@kernel
def put(out, start, n, weights, at):
    """out[start:][:n] = weights[at:][:n]; what lies behind them."""
    for j in range(n):
        out[start + j] = weights[at + j]
    return at + n


@kernel
def add_product(x, first, n, weights, at, wide, out, start, values, places):
    """out[start:][:wide] += x[first:][:n] @ the matrix (n, wide) at weights[at:]; what lies behind that matrix.

    `values`, `places`: room for the n terms at most that are not 0.
    """
    found = 0
    for i in range(n):
        values[found] = x[first + i]
        places[found] = at + i * wide
        found += x[first + i] != 0
    total = out[start:][:wide]  # with indices from 0 on, so that loops over it are vectorised
    k = 0
    while k + 8 <= found:  # eight rows at a time, so that a sum is fetched and stored once for all of them
        a, b, c, d = values[k], values[k + 1], values[k + 2], values[k + 3]
        e, f, g, h = values[k + 4], values[k + 5], values[k + 6], values[k + 7]
        of_a = weights[places[k] :][:wide]
        of_b = weights[places[k + 1] :][:wide]
        of_c = weights[places[k + 2] :][:wide]
        of_d = weights[places[k + 3] :][:wide]
        of_e = weights[places[k + 4] :][:wide]
        of_f = weights[places[k + 5] :][:wide]
        of_g = weights[places[k + 6] :][:wide]
        of_h = weights[places[k + 7] :][:wide]
        for j in range(wide):
            left = (a * of_a[j] + b * of_b[j]) + (c * of_c[j] + d * of_d[j])
            total[j] += left + ((e * of_e[j] + f * of_f[j]) + (g * of_g[j] + h * of_h[j]))
        k += 8
    while k < found:
        a, of_a = values[k], weights[places[k] :][:wide]
        for j in range(wide):
            total[j] += a * of_a[j]
        k += 1
    return at + n * wide


@kernel
def activate(x, start, n, tanh):
    """The activation, in place: tanh, or ReLU; nan stays nan."""
    if tanh:
        for j in range(start, start + n):
            x[j] = math.tanh(x[j])
    else:
        for j in range(start, start + n):
            x[j] = np.float32(0.0) if x[j] < 0 else x[j]


@kernel
def best(logits, mask):
    """The legal action with the largest logit, the first of equals; -1 if there is none, or any logit is not finite."""
    action = -1
    finite = np.float32(0.0)
    for a in range(N_ACTIONS):
        finite += np.float32(0.0) * logits[a]  # 0 x inf and 0 x nan are nan
        if mask[a] and (action < 0 or logits[a] > logits[action]):
            action = a
    return action if finite == 0 else -1


@wide_entry
def flat(seen, mask, widths, weights, tanh, logits, odd, even, values, places):
    """`conductor.policy.Mlp`: fills the logits (128,) and returns the action.

    `widths`: of the input and all layers; `weights`: of each layer the bias, then the matrix (in, out); `odd`, `even`: room
    for every second hidden layer.
    """
    at = 0
    last = widths.size - 2
    for layer in range(widths.size - 1):
        x = seen if layer == 0 else (even if layer % 2 == 0 else odd)
        out = logits if layer == last else (odd if layer % 2 == 0 else even)
        n, wide = widths[layer], widths[layer + 1]
        at = put(out, 0, wide, weights, at)
        at = add_product(x, 0, n, weights, at, wide, out, 0, values, places)
        if layer < last:
            activate(out, 0, wide, tanh)
    return best(logits, mask)


@wide_entry
def shared(seen, mask, widths, weights, tanh, logits, hidden, encoded, values, places):
    """`conductor.policy.Slots`: fills the logits (128,) and returns the action.

    `widths`: of an encoded slot, and of the summary; `weights`: as `Slots` packs them; `hidden`, `encoded`: room for 16 slots.
    """
    encoder, summary = widths[0], widths[1]
    to_slot, to_summary, pool = 0, encoder, encoder + summary  # parts of `hidden`, behind which one slot's own has its place
    own = pool + 2 * encoder
    at = put(hidden, to_slot, encoder + summary, weights, 0)
    at = add_product(seen, POOL_OFFSET, N_CONTEXT, weights, at, encoder + summary, hidden, to_slot, values, places)
    used = 0
    for j in range(pool, own):
        hidden[j] = 0.0
    for g in range(N_SLOTS):
        used += seen[g * N_SLOT_FEATURES] != 0
    slot_at, encoder_at = at, at + N_SLOT_FEATURES * encoder
    at = encoder_at + encoder + encoder * encoder
    k = 0
    for g in range(N_SLOTS):
        if seen[g * N_SLOT_FEATURES] != 0:
            here = k * encoder
            put(hidden, own, encoder, hidden, to_slot)
            add_product(seen, g * N_SLOT_FEATURES, N_SLOT_FEATURES, weights, slot_at, encoder, hidden, own, values, places)
            activate(hidden, own, encoder, tanh)
            matrix = put(encoded, here, encoder, weights, encoder_at)
            add_product(hidden, own, encoder, weights, matrix, encoder, encoded, here, values, places)
            activate(encoded, here, encoder, tanh)
            for j in range(encoder):
                x = encoded[here + j]
                hidden[pool + j] += x / np.float32(used)
                highest = hidden[pool + encoder + j]
                hidden[pool + encoder + j] = x if k == 0 or x > highest or x != x else highest
            k += 1
    at = add_product(hidden, pool, 2 * encoder, weights, at, summary, hidden, to_summary, values, places)
    activate(hidden, to_summary, summary, tanh)
    at = put(hidden, to_slot, encoder, weights, at)
    at = add_product(hidden, to_summary, summary, weights, at, encoder, hidden, to_slot, values, places)
    at = put(logits, WAIT, N_GLOBAL_ACTIONS, weights, at)
    at = add_product(hidden, to_summary, summary, weights, at, N_GLOBAL_ACTIONS, logits, WAIT, values, places)
    verbs_at = at + encoder * encoder
    k = 0
    for g in range(N_SLOTS):
        to = g * N_VERBS
        if seen[g * N_SLOT_FEATURES] != 0:
            put(hidden, own, encoder, hidden, to_slot)
            add_product(encoded, k * encoder, encoder, weights, at, encoder, hidden, own, values, places)
            activate(hidden, own, encoder, tanh)
            matrix = put(logits, to, N_VERBS, weights, verbs_at)
            add_product(hidden, own, encoder, weights, matrix, N_VERBS, logits, to, values, places)
            k += 1
        else:
            for j in range(to, to + N_VERBS):
                logits[j] = 0.0
    return best(logits, mask)

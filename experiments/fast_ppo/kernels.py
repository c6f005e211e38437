"""What Numba compiles of the learner: storing, sampling, sorting, the losses with their gradients, advantages, Adam.

Legal actions are walked bit by bit: of 128 actions some ten are legal, so nothing is computed for the others. All kernels
stand in this one file, because Numba's cache does not notice a change in an imported one.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

MAX_ACTIONS = 128  # two words of 64 bits
SUMS = ("policy_loss", "value_loss", "entropy", "kl", "clipped", "anchor_kl")  # what `losses` adds up
IMITATION_SUMS = ("loss", "value_loss", "agreement", "weight")  # what `imitation` adds up
DEAD_ACTION, NO_ACTION = -1, -2  # what `sample` returns if a legal action was declared dead, if a row has no legal action

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@intrinsic
def _lowest_bit(typingctx: Any, word: Any) -> Any:
    """The index of the lowest bit that is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), codegen


@_compiled
def pack(masks, words):
    """Masks (n, a <= 128) bool as bits: action a is bit a % 64 of word a // 64 of `words` (n, 2) uint64."""
    for i in range(masks.shape[0]):
        words[i, 0] = np.uint64(0)
        words[i, 1] = np.uint64(0)
        for a in range(masks.shape[1]):
            words[i, a >> 6] |= np.uint64(masks[i, a]) << np.uint64(a & 63)


@_compiled
def take_in(obs, words, places, runs, run_ends, widths, heights, flat, position, offsets, rungs):
    """Stores observations (n, width) one behind the other in `flat` from `position` on, each with its rung's columns only.

    A frame's rung is the lowest that holds all its non-zero columns and legal actions: rung r holds the runs of columns
    (`runs` (k, 2): first, length) before `run_ends[r]`, `widths[r]` columns in all, and the first `heights[r]` outputs;
    `places` (128,) is the output of each action, -1 if it is dead. Without `words` (of size 0) masks do not matter.
    Writes where each frame begins into `offsets` (n,) and its rung into `rungs` (n,). Returns the next position, or
    DEAD_ACTION or NO_ACTION if a mask is wrong.
    """
    bits = obs.view(np.int32)  # a disjunction of integers needs no branch per column
    for i in range(obs.shape[0]):
        highest = 0
        if words.size > 0:
            highest = -1
            for w in range(2):
                word = words[i, w]
                while word != 0:
                    place = places[64 * w + _lowest_bit(word)]
                    if place < 0:
                        return DEAD_ACTION
                    highest = max(highest, place)
                    word &= word - np.uint64(1)
            if highest < 0:
                return NO_ACTION
        rung = widths.shape[0] - 1
        while rung > 0 and heights[rung - 1] > highest:
            some = np.int32(0)
            for r in range(run_ends[rung - 1], run_ends[rung]):
                run = bits[i, runs[r, 0] :]
                for j in range(runs[r, 1]):
                    some |= run[j]
            if some != 0:
                break
            rung -= 1
        rungs[i] = rung
        offsets[i] = position
        for r in range(run_ends[rung]):
            source, target = obs[i, runs[r, 0] :], flat[position:]
            for j in range(runs[r, 1]):
                target[j] = source[j]
            position += runs[r, 1]
    return position


@_compiled
def arrange(frames, rungs, ordered, ends):
    """`frames` (b,) sorted by rung into `ordered` (b,), in their order within one; rung r ends at `ends[r]`."""
    ends[:] = 0
    for k in range(frames.shape[0]):
        ends[rungs[frames[k]]] += 1
    total = 0
    for r in range(ends.shape[0]):
        total += ends[r]
        ends[r] = total - ends[r]
    for k in range(frames.shape[0]):
        r = rungs[frames[k]]
        ordered[ends[r]] = frames[k]
        ends[r] += 1


@_compiled
def gather(flat, offsets, frames, ends, widths, out):
    """The stored `frames` (b,) into the rows of `out`, of each only the columns that its rung holds."""
    start = 0
    for r in range(ends.shape[0]):
        width = widths[r]
        for k in range(start, ends[r]):
            row = flat[offsets[frames[k]] :]  # a view: an index that is a plain counter lets LLVM vectorise
            for j in range(width):
                out[k, j] = row[j]
        start = ends[r]


@_compiled
def sample(logits, frames, words, places, first, uniform, actions, log_probs):
    """Draws an action per row by the masked softmax of its logits, by inversion of one uniform number each.

    Row k of `logits` (n, outputs) is frame `frames[k]`, the frame of environment `frames[k] - first`. By environment:
    `uniform` (n,) in [0, 1), out: `actions` (n,) int64, `log_probs` (n,) float32.
    """
    weight = np.empty(MAX_ACTIONS, np.float32)
    legal = np.empty(MAX_ACTIONS, np.int64)
    for k in range(frames.shape[0]):
        f = frames[k]
        i = f - first
        n = 0
        top = np.float32(-np.inf)
        for w in range(2):
            word = words[f, w]
            while word != 0:
                a = 64 * w + np.int64(_lowest_bit(word))
                legal[n] = a
                weight[n] = logits[k, places[a]]
                top = max(top, weight[n])
                n += 1
                word &= word - np.uint64(1)
        total = np.float32(0.0)
        for j in range(n):
            weight[j] = math.exp(weight[j] - top)
            total += weight[j]
        left = np.float32(uniform[i]) * total
        j = 0
        while j < n - 1 and left >= weight[j]:
            left -= weight[j]
            j += 1
        while weight[j] == 0.0 and j > 0:  # rounding never chooses what has no probability
            j -= 1
        actions[i] = legal[j]
        log_probs[i] = math.log(weight[j] / total)


@_compiled
def losses(
    logits, values, frames, words, places, heights, ends, actions, old_log_probs, advantages, returns, old_values,
    normalise, clip, clip_vf, ent_coef, vf_coef, anchor, anchor_coef, d_logits, d_values, sums,
):  # fmt: skip
    """PPO's losses of a batch and their gradients at logits and values, in one pass over the legal actions.

    Row k of `logits` (b, outputs) and `values` (b,) is frame `frames[k]`; what follows is by frame. `clip_vf` < 0: the value
    loss is not clipped. Gradients of mean(policy) + vf_coef mean(value) - ent_coef mean(entropy) into `d_logits` (of each row
    as many outputs as its rung has: `heights`, `ends`) and `d_values`; sums of `SUMS` into `sums` (6,) float64.
    Formulas: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", as stable-baselines3 applies them.
    If `anchor_coef` > 0, anchor_coef mean(KL(p, q)) is added, q the masked softmax of `anchor` (frames, outputs) float32:
    KL = sum p (log p - log q), its gradient at the logits p (log p - log q - KL).
    """
    b = frames.shape[0]
    mean, scale = 0.0, 1.0
    if normalise:
        for k in range(b):
            mean += advantages[frames[k]]
        mean /= b
        square = 0.0
        for k in range(b):
            square += (advantages[frames[k]] - mean) ** 2
        scale = 1.0 / (math.sqrt(square / (b - 1)) + 1e-8)
    policy_loss = value_loss = entropy_sum = kl = clipped = anchor_sum = 0.0
    log_p = np.empty(MAX_ACTIONS, np.float32)
    p = np.empty(MAX_ACTIONS, np.float32)
    at = np.empty(MAX_ACTIONS, np.int64)
    start = 0
    for r in range(ends.shape[0]):
        height = heights[r]
        for k in range(start, ends[r]):
            f = frames[k]
            n = 0
            top = np.float32(-np.inf)
            for w in range(2):
                word = words[f, w]
                while word != 0:
                    place = places[64 * w + _lowest_bit(word)]
                    at[n] = place
                    log_p[n] = logits[k, place]
                    top = max(top, log_p[n])
                    n += 1
                    word &= word - np.uint64(1)
            total = np.float32(0.0)
            for j in range(n):
                p[j] = math.exp(log_p[j] - top)
                total += p[j]
            offset = top + np.float32(math.log(total))
            entropy = np.float32(0.0)
            for j in range(n):
                log_p[j] -= offset
                p[j] /= total
                entropy -= p[j] * log_p[j]
            chosen = places[actions[f]]
            log_ratio = np.float64(logits[k, chosen] - offset) - old_log_probs[f]
            ratio = math.exp(log_ratio)
            advantage = (advantages[f] - mean) * scale
            plain = advantage * ratio
            bounded = advantage * min(max(ratio, 1.0 - clip), 1.0 + clip)
            policy_loss -= min(plain, bounded)
            kl += (ratio - 1.0) - log_ratio
            clipped += 1.0 if abs(ratio - 1.0) > clip else 0.0
            entropy_sum += entropy
            pull = np.float32(plain / b) if plain <= bounded else np.float32(0.0)
            spread = np.float32(ent_coef / b)
            for j in range(height):
                d_logits[k, j] = 0.0
            for j in range(n):
                d_logits[k, at[j]] = p[j] * (pull + spread * (log_p[j] + entropy))
            d_logits[k, chosen] -= pull
            if anchor_coef > 0.0:
                top = np.float32(-np.inf)
                for j in range(n):
                    top = max(top, anchor[f, at[j]])
                total = np.float32(0.0)
                for j in range(n):
                    total += math.exp(anchor[f, at[j]] - top)
                offset = top + np.float32(math.log(total))
                far = np.float32(0.0)
                for j in range(n):
                    log_p[j] -= anchor[f, at[j]] - offset
                    far += p[j] * log_p[j]
                for j in range(n):
                    d_logits[k, at[j]] += np.float32(anchor_coef / b) * p[j] * (log_p[j] - far)
                anchor_sum += far
            value = np.float64(values[k])
            inside = 1.0
            if clip_vf >= 0.0:
                moved = value - old_values[f]
                inside = 1.0 if abs(moved) <= clip_vf else 0.0
                value = old_values[f] + min(max(moved, -clip_vf), clip_vf)
            error = value - returns[f]
            value_loss += error * error
            d_values[k] = inside * vf_coef * 2.0 * error / b
        start = ends[r]
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = policy_loss, value_loss, entropy_sum, kl, clipped, anchor_sum


@_compiled
def imitation(
    logits, values, frames, words, places, heights, ends, actions, weights, returns, firsts, expected, smoothing, ent_coef,
    vf_coef, d_logits, d_values, sums,
):  # fmt: skip
    """What there is to learn from a teacher, frame by frame times `weights`, the value's squared error, and the gradients of
    mean(loss) + vf_coef mean(error).

    Row k of `logits` (b, outputs) and `values` (b,) is frame `frames[k]`; what follows is by frame, see `losses`. The loss is,
    where `firsts` < 0, the cross-entropy of the masked softmax p with the teacher's `actions`; the share `smoothing` of its
    target goes to all legal actions alike (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision",
    section 7). Elsewhere it is -sum p q - ent_coef entropy(p), q[i] = `expected[firsts + i]` the i-th legal action's.
    Sums of `IMITATION_SUMS` into `sums` (4,) float64; `agreement` counts the weight of frames whose largest logit is the
    teacher's.
    """
    b = frames.shape[0]
    loss = value_loss = agreement = weight_sum = 0.0
    log_p = np.empty(MAX_ACTIONS, np.float32)
    p = np.empty(MAX_ACTIONS, np.float32)
    at = np.empty(MAX_ACTIONS, np.int64)
    start = 0
    for r in range(ends.shape[0]):
        for k in range(start, ends[r]):
            f = frames[k]
            n, best = 0, 0
            for w in range(2):
                word = words[f, w]
                while word != 0:
                    at[n] = places[64 * w + _lowest_bit(word)]
                    log_p[n] = logits[k, at[n]]
                    if log_p[n] > log_p[best]:
                        best = n
                    n += 1
                    word &= word - np.uint64(1)
            top, total = log_p[best], np.float32(0.0)
            for j in range(n):
                p[j] = math.exp(log_p[j] - top)
                total += p[j]
            offset = top + np.float32(math.log(total))
            entropy = mean = np.float32(0.0)
            known = firsts[f] >= 0
            for j in range(n):
                log_p[j] -= offset
                p[j] /= total
                entropy -= p[j] * log_p[j]
                mean += p[j] * expected[firsts[f] + j] if known else log_p[j] / n
            for j in range(heights[r]):
                d_logits[k, j] = 0.0
            scale, chosen = np.float32(weights[f] / b), places[actions[f]]
            if known:
                spread = np.float32(ent_coef)
                for j in range(n):
                    d_logits[k, at[j]] = scale * p[j] * (mean - expected[firsts[f] + j] + spread * (log_p[j] + entropy))
                loss -= weights[f] * (mean + ent_coef * entropy)
            else:
                each = np.float32(smoothing / n)
                for j in range(n):
                    d_logits[k, at[j]] = scale * (p[j] - each)
                d_logits[k, chosen] -= scale * np.float32(1.0 - smoothing)
                loss -= weights[f] * ((1.0 - smoothing) * (logits[k, chosen] - offset) + smoothing * mean)
            agreement += weights[f] if at[best] == chosen else 0.0
            weight_sum += weights[f]
            error = np.float64(values[k]) - returns[f]
            value_loss += error * error
            d_values[k] = vf_coef * 2.0 * error / b
        start = ends[r]
    sums[0], sums[1], sums[2], sums[3] = loss, value_loss, agreement, weight_sum


@_compiled
def advantages_of(rewards, values, starts, last_values, last_dones, gamma, lam, advantages, returns):
    """Generalised advantage estimation (Schulman et al. 2016) over a rollout (t, n); `starts`: where an episode begins."""
    steps, n = rewards.shape
    for i in range(n):
        carry = 0.0
        for t in range(steps - 1, -1, -1):
            if t == steps - 1:
                going, following = 1.0 - last_dones[i], np.float64(last_values[i])
            else:
                going, following = 1.0 - starts[t + 1, i], np.float64(values[t + 1, i])
            delta = rewards[t, i] + gamma * following * going - values[t, i]
            carry = delta + gamma * lam * going * carry
            advantages[t, i] = carry
            returns[t, i] = carry + values[t, i]


@_compiled
def adam(weights, gradient, first, second, scale, rate, beta1, beta2, epsilon, step):
    """One step of Adam (Kingma and Ba 2015) on flat float32 arrays, with the gradient multiplied by `scale` before."""
    size = np.float32(rate / (1.0 - beta1**step))
    root = np.float32(math.sqrt(1.0 - beta2**step))
    b1, b2, eps, s = np.float32(beta1), np.float32(beta2), np.float32(epsilon), np.float32(scale)
    one = np.float32(1.0)
    for j in range(weights.shape[0]):
        g = gradient[j] * s
        m = first[j] + (one - b1) * (g - first[j])
        v = b2 * second[j] + (one - b2) * g * g
        first[j] = m
        second[j] = v
        weights[j] -= size * m / (np.sqrt(v) / root + eps)

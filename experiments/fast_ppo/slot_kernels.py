"""What Numba compiles of `SlotTowers`: moving between frames and their members, the slots in use.

Frame i has `counts[i]` members; they stand one behind the other in the order of the frames.
"""

from __future__ import annotations

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def unpack(flat, offsets, frames, ends, context, members, counts):
    """The stored `frames` (b,), sorted by their number of members: their context (b, c) and members (m, d); returns m."""
    c, d = context.shape[1], members.shape[1]
    m = 0
    start = 0
    for rung in range(ends.shape[0]):
        for k in range(start, ends[rung]):
            frame = flat[offsets[frames[k]] :]
            for j in range(c):
                context[k, j] = frame[j]
            counts[k] = rung
            for i in range(rung):
                member = frame[c + i * d :]
                for j in range(d):
                    members[m, j] = member[j]
                m += 1
        start = ends[rung]
    return m


@_compiled
def add_and_clip(members, first, frames, at, width, counts):
    """members[:, first + j] = max(0, itself + its frame's frames[:, at + j]), j < width."""
    m = 0
    for i in range(counts.shape[0]):
        row = frames[i, at : at + width]
        for _ in range(counts[i]):
            member = members[m, first : first + width]
            for j in range(width):
                member[j] = max(member[j] + row[j], np.float32(0.0))
            m += 1


@_compiled
def pool(members, counts, pooled, which):
    """Mean and maximum of each frame's members (m, e) into `pooled` (b, 2 e), 0 without any; who is highest into `which`."""
    e = members.shape[1]
    m = 0
    for i in range(counts.shape[0]):
        mean, highest, who, n = pooled[i, :e], pooled[i, e:], which[i], counts[i]
        if n == 0:
            pooled[i] = np.float32(0.0)
            continue
        for j in range(e):
            mean[j] = members[m, j]
        for j in range(e):
            highest[j] = members[m, j]
        for j in range(e):
            who[j] = np.int32(0)
        for k in range(1, n):
            member, me = members[m + k], np.int32(k)  # as wide as a float32: LLVM selects both in one vector
            for j in range(e):
                mean[j] += member[j]
            for j in range(e):
                new, old = member[j], highest[j]
                higher = new > old
                who[j] = me if higher else who[j]
                highest[j] = new if higher else old
        m += n
        share = np.float32(1.0) / np.float32(n)
        for j in range(e):
            mean[j] *= share


@_compiled
def unpool(d_pooled, counts, which, members, add, d_members):
    """The gradient at the members from that at mean and maximum, added to `d_members` (m, e) if `add`, through the ReLU."""
    e = members.shape[1]
    m = 0
    for i in range(counts.shape[0]):
        mean, highest, who = d_pooled[i, :e], d_pooled[i, e:], which[i]
        share = np.float32(1.0) / np.float32(max(1, counts[i]))
        for k in range(counts[i]):
            member, d, me = members[m], d_members[m], np.int32(k)
            m += 1
            for j in range(e):
                new = (d[j] if add else np.float32(0.0)) + mean[j] * share + (highest[j] if who[j] == me else np.float32(0.0))
                d[j] = new if member[j] > np.float32(0.0) else np.float32(0.0)


@_compiled
def clip_and_sum(d_members, members, first, counts, d_frames, at, width):
    """d_members *= (members > 0), columns `first`..; their sums over each frame's members into d_frames[:, at..]."""
    m = 0
    for i in range(counts.shape[0]):
        row = d_frames[i, at : at + width]
        for j in range(width):
            row[j] = np.float32(0.0)
        for _ in range(counts[i]):
            d, member = d_members[m, first : first + width], members[m, first : first + width]
            m += 1
            for j in range(width):
                d[j] = d[j] if member[j] > np.float32(0.0) else np.float32(0.0)
                row[j] += d[j]


@_compiled
def spread(of_frames, at, verbs, counts, logits):
    """Logits of frames: `of_frames[:, at:]`, then the verbs (m, v) of each member."""
    n_global, v = of_frames.shape[1] - at, verbs.shape[1]
    m = 0
    for i in range(counts.shape[0]):
        for j in range(n_global):
            logits[i, j] = of_frames[i, at + j]
        for k in range(counts[i]):
            for j in range(v):
                logits[i, n_global + k * v + j] = verbs[m, j]
            m += 1


@_compiled
def collect(d_logits, counts, d_of_frames, at, d_verbs):
    """The reverse of `spread`, for gradients."""
    n_global, v = d_of_frames.shape[1] - at, d_verbs.shape[1]
    m = 0
    for i in range(counts.shape[0]):
        for j in range(n_global):
            d_of_frames[i, at + j] = d_logits[i, j]
        for k in range(counts[i]):
            for j in range(v):
                d_verbs[m, j] = d_logits[i, n_global + k * v + j]
            m += 1

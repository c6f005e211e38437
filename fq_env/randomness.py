"""Random numbers inside kernels: hashes of (seed, stream, key), so that a draw does not depend on what was drawn before.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Separate streams make players comparable on common random numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numba import uint64

from pit.compiled import kernel

WORKFLOW, DURATIONS, FAILURES, LOADS, PLAYER, STRAGGLERS, OUTAGES, TENANTS, DRIFT, ARRIVALS, CHANGES, SIZES = range(12)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11, _16, _32, _48 = (np.uint64(x) for x in (30, 27, 31, 11, 16, 32, 48))
_LOW16 = np.uint64(0xFFFF)
_SQRT3 = math.sqrt(3.0)


@kernel
def mix(seed, key):
    """A 64-bit hash of a 64-bit seed and an integer key."""
    x = uint64(seed) + (uint64(key) + uint64(1)) * _GOLDEN
    x = (x ^ (x >> _30)) * _M1
    x = (x ^ (x >> _27)) * _M2
    return x ^ (x >> _31)


@kernel
def to_uniform(x):
    """64 random bits as float64 in [0, 1)."""
    return float(x >> _11) * (1.0 / 9007199254740992.0)


@kernel
def to_normal(x):
    """64 random bits as a nearly normal float64 with mean 0 and variance 1: the sum of four 16-bit uniforms (Irwin-Hall)."""
    total = (x & _LOW16) + ((x >> _16) & _LOW16) + ((x >> _32) & _LOW16) + (x >> _48)
    return ((float(total) + 2.0) / 65536.0 - 2.0) * _SQRT3


@kernel
def to_noise(x, sigma):
    """64 random bits as a factor exp(sigma z - sigma^2 / 2) with mean about 1."""
    if sigma <= 0.0:
        return 1.0
    return math.exp(sigma * to_normal(x) - 0.5 * sigma * sigma)


@kernel
def bits(w):
    """The next 64 bits of the record's own stream `w.stream` (used while an instance is generated)."""
    w.drawn += 1
    return mix(w.stream, w.drawn)


@kernel
def uniform(w, low, high):
    """A float64 in [low, high)."""
    return low + (high - low) * to_uniform(bits(w))


@kernel
def pick(w, n):
    """An int64 in 0..n-1."""
    return np.int64(((bits(w) >> _32) * uint64(n)) >> _32)


@kernel
def integer(w, low, high):
    """An int64 in low..high, both included."""
    return low + pick(w, high - low + 1)

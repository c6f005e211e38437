"""Random numbers of the game in plain Python, as section 2 of `fq_env/README.md` says them."""

from __future__ import annotations

import math

WORD = 2**64 - 1


def mix(seed: int, key: int) -> int:
    """A hash of 64 bits."""
    x = (seed + (key + 1) * 0x9E3779B97F4A7C15) & WORD
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & WORD
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def uniform(x: int) -> float:
    return (x >> 11) * 2.0**-53


def normal(x: int) -> float:
    parts = sum(x >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    return ((parts + 2) / 65536 - 2) * math.sqrt(3)


def noise(x: int, sigma: float) -> float:
    return math.exp(sigma * normal(x) - 0.5 * sigma * sigma) if sigma > 0 else 1.0

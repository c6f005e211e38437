"""How durations, counts and ratios become features between -1 and 1."""

from __future__ import annotations

import numpy as np

from pit.compiled import kernel


@kernel
def clip(x, low, high):
    return min(max(x, low), high)


@kernel
def squash(x, unit):
    """max(x, 0) / (max(x, 0) + unit): a duration on a scale where the mean call is one half."""
    x = max(x, 0.0)
    return x / (x + unit)


@kernel
def crowd(n, half):
    """n / (n + half) of a count or a sum."""
    return n / (n + half)


# n / (n + half) of small counts, so that the commonest features cost no division.
_HALF2, _HALF4, _HALF8 = (np.array([n / (n + half) for n in range(64)]) for half in (2.0, 4.0, 8.0))


@kernel
def count2(n):
    """n / (n + 2) of a count."""
    return _HALF2[n] if 0 <= n < 64 else n / (n + 2.0)


@kernel
def count4(n):
    """n / (n + 4) of a count."""
    return _HALF4[n] if 0 <= n < 64 else n / (n + 4.0)


@kernel
def count8(n):
    """n / (n + 8) of a count."""
    return _HALF8[n] if 0 <= n < 64 else n / (n + 8.0)


@kernel
def contrast(a, b):
    """(a - b) / (a + b), 0 if both are 0: a ratio on [-1, 1]."""
    return (a - b) / (a + b) if a + b > 0.0 else 0.0

"""Health: what the Pit believes about its pools and about its own estimates; running averages of outcomes.

It observes and never acts.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import EWMA


@kernel
def relative_error(average, elapsed, estimate):
    """The running average of |elapsed / estimate - 1|, each at most 1, after one more observation."""
    if elapsed <= 0 or estimate <= 0.0:
        return average
    return average + EWMA * (min(1.0, abs(elapsed / estimate - 1.0)) - average)


@kernel
def outcome(s, p, failed):
    """One call of pool p has ended, failed = 1.0 or 0.0."""
    pool = s.pools[p]
    s.failure_error += EWMA * (abs(failed - pool.failures) - s.failure_error)
    pool.failures += EWMA * (failed - pool.failures)

"""The compiled loop of `operations`: importing it imports the Pit's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fq_env.state import integer_at
from pit.compiled import entry
from pit.interface import act, advance, apply, decision_due
from pit.memory import copy_bytes
from pit.observation import encode
from pit.state import event_at, pit_at
from pit.timers import other_timer

CLONE, ACT, ADVANCE, APPLY, DUE, OBSERVE, TIMER = range(7)


@entry
def repeat(operation: int, pits: int, count: int, size: int, inputs: int, spare: int, obs: int, mask: int, times: int) -> Any:
    """`times` passes over `count` Pits of `size` bytes: each is copied to `spare`, then the operation done with its input.

    `pits`, `inputs`, `spare`, `obs` and `mask` are addresses. Returns the sum of the operations' answers (of most: none).
    """
    total: Any = np.int64(0)
    for _ in range(times):
        for k in range(count):
            copy_bytes(spare, pits + k * size, size)
            s = pit_at(spare)
            x = integer_at(inputs + 8 * k).x
            if operation == ACT:
                act(s, x)
            elif operation == ADVANCE:
                advance(s, x)
            elif operation == APPLY:
                total += np.int64(apply(s, event_at(x)))
            elif operation == DUE:
                total += np.int64(decision_due(s))
            elif operation == OBSERVE:
                encode(s, obs, mask, 1)
            elif operation == TIMER:
                total += other_timer(s)
    return total

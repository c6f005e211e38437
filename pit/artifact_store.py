"""Artifact Store: what finished tasks left: quality, size, version, time. Inputs' quality flows into outputs'.

It must not know which tasks become ready by an artifact: that is the DAG Tracker's.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import DONE
from pit.state import artifact, predecessor, task, variant


@kernel
def flowed(s, i, quality):
    """Quality of task i's output if its variant alone would give `quality`: q (1 - a + a mean(inputs)), a the quality flow.

    An input that is given up counts 0; of alternatives only those that are done count.
    """
    t = task(s, i)
    n = t.pred_to - t.pred_from
    mean = 1.0
    if n > 0:
        total = 0.0
        for e in range(t.pred_from, t.pred_to):
            o = task(s, predecessor(s, e).task)
            if t.join_any == 1 and o.state != DONE:
                n -= 1
            else:
                total += o.quality
        mean = total / n if n > 0 else 1.0
    return quality * (1.0 - s.quality_flow + s.quality_flow * mean)


@kernel
def store(s, i, row, quality, size):
    """Keeps the output of task i; an unknown quality (< 0) counts as the variant's nominal one."""
    t = task(s, i)
    if quality < 0.0:
        quality = flowed(s, i, variant(s, row).quality)
    t.quality = quality
    t.version += 1
    kept = artifact(s, i)
    kept.created = s.now
    kept.size = size

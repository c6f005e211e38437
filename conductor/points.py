"""Where crash tests end the process: `FQ_KILL_AT=after_intent:2` acts like `kill -9` when it gets there a second time."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter


class Points:
    """Counts how often each point was passed, if this process is to die at one."""

    def __init__(self) -> None:
        self._at = os.environ.get("FQ_KILL_AT", "")
        self._passed: Counter[str] = Counter()

    def passed(self, name: str, reached: bool = True) -> None:
        """The process is at a point; `reached` says whether what the point is about happened in this tick at all."""
        if reached and self._at:
            self._passed[name] += 1
            if self._at == f"{name}:{self._passed[name]}":
                time.sleep(0.1)  # what was begun is in its middle by then
                os.kill(os.getpid(), signal.SIGKILL)

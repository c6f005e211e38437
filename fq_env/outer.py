"""What engines have in common that stand between an engine and its agent: they must be entered through Python."""

from __future__ import annotations

import ctypes
from typing import Any

from fq_env.engine import STEP, Engine, data_address


class OuterEngine(Engine):
    """An engine whose `step` and `_run` do more than the kernel."""

    def step_one(self, action: Any) -> int:
        """See `Engine`."""
        return self.step(action)

    def operate(self, kernel: int, address: int, operation: int, action: Any, row: int) -> tuple[float, bool, bool]:
        """What `fq_env.single.bind` gives for an engine with n = 1: one operation, shown at `row`."""
        self.step(action) if operation == STEP else self._run(operation)
        ctypes.memmove(row, data_address(self.obs), self.obs.nbytes)
        ctypes.memmove(row + self.obs.nbytes, data_address(self.masks), self.masks.nbytes)
        return float(self.rewards[0]), bool(self.terminated[0]), bool(self.truncated[0])

"""An agent without memory of what happened, for ablations: the features that carry history read 0, all else is the level's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fq_env.engine import STEP
from fq_env.live import history_columns
from fq_env.outer import OuterEngine


class BlindEngine(OuterEngine):
    """n environments whose observations carry no history; arguments, buffers and players are `Engine`'s."""

    def __init__(self, levels: Any, n: int, **options: Any) -> None:
        super().__init__(levels, n, **options)
        self._blank = np.flatnonzero(history_columns())

    def step(self, actions: Any) -> int:
        """See `Engine`."""
        self._actions[:] = actions
        return self._run(STEP)

    def _run(self, operation: int) -> int:
        ended = super()._run(operation)
        for buffer in (self.obs, self.final_obs):
            buffer[:, self._blank] = 0.0
        return ended

"""Environments for a learner that is not told what is legal: it finds out by warnings."""

from __future__ import annotations

from typing import Any

import numpy as np

from fq_env.live import live_actions, possible_actions
from fq_env.sb3 import FunctionQuestVecEnv


class UnmaskedEnv(FunctionQuestVecEnv):
    """As `FunctionQuestVecEnv`, but its masks are what may be legal for all that the observations tell.

    An action that is not legal then is warned of and becomes `wait`, or else the first legal one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._live = np.any([live_actions(level) for level in self._engine.unique], axis=0)

    def action_masks(self) -> np.ndarray:
        """All that may be legal: a new bool array (n, 128), no row all False."""
        return possible_actions(self._engine.obs, self._live)

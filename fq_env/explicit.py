"""The old model of infrastructure, for comparison: the agent performs every stage of every call by itself.

The world, its instances, scores and rewards are those of the plain level (`fq_env.level.plain_level`). Only `invoke` and
`wait` reach the Pit; the other five stages are a thin layer over the engine that takes no simulated time: `fq_env/README.md`,
section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fq_env.block import Block
from fq_env.engine import RESET, STEP, data_address
from fq_env.errors import FQError
from fq_env.explicit_kernel import LAYER, SHOW, TAKE, layer, ledger_size
from fq_env.level import Level
from fq_env.outer import OuterEngine

STAGES = ("allocate", "validate", "invoke", "store", "track", "release")  # of a slot's seven verbs the first six


class ExplicitBlock(Block):
    """One environment's memory, with a ledger of its calls' stages at the end: clones and checkpoints hold it, too."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__(levels)
        self.ledger = self.stride
        self.stride += ledger_size(self.tasks)


class ExplicitEngine(OuterEngine):
    """n environments of explicit levels; arguments and buffers are `Engine`'s.

    `obs`, `masks` are what the agent sees; the Pit's own, which the kernel writes, stay hidden.
    """

    block_type = ExplicitBlock

    def __init__(self, levels: Any, n: int, **options: Any) -> None:
        super().__init__(levels, n, **options)
        assert isinstance(self.block, ExplicitBlock)
        self._pit_buffers = self.obs, self.masks
        self.obs, self.masks = np.zeros_like(self.obs), np.zeros_like(self.masks)
        self._layer = np.zeros(1, LAYER)
        for name, value in (
            ("engine", self._address), ("ledger", self.block.ledger),
            ("obs", data_address(self.obs)), ("masks", data_address(self.masks)),
        ):  # fmt: skip
            self._layer[name] = value
        self._layer_address = data_address(self._layer)

    def renew_obs(self) -> np.ndarray:
        """See `Engine`."""
        old, self.obs = self.obs, np.empty_like(self.obs)
        self._layer["obs"] = data_address(self.obs)
        return old

    def step(self, actions: Any) -> int:
        """Every environment takes its action, (n,) integers; returns how many episodes ended."""
        self._actions[:] = actions
        layer(self._layer_address, TAKE)
        ended = super()._run(STEP)
        layer(self._layer_address, SHOW)
        return ended

    def _run(self, operation: int) -> int:
        if operation != RESET:
            raise FQError("rules and searches know no explicit stages; let them play the plain level, such as plain-11")
        super()._run(operation)
        return layer(self._layer_address, SHOW)

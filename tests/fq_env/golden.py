"""Golden traces: 200 steps of every level, hashed. A changed hash changes what agents learn: it asks for a line in the level's
`history` and, once released, for a new version. `python -m tests.fq_env.golden` writes them anew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from fq_env.engine import Engine
from fq_env.level_files import LEVELS

FILE = Path(__file__).with_suffix(".json")
STEPS, N = 200, 3


def trace(level: int) -> str:
    """A hash of observations, masks, rewards, flags and results under random legal actions."""
    engine, rng, digest = Engine(level, N, seed=7), np.random.default_rng(level), hashlib.sha256()
    engine.reset()
    for _ in range(STEPS):
        for array in (engine.obs, engine.masks, engine.rewards, engine.terminated, engine.truncated, engine.episodes["total"]):
            digest.update(np.ascontiguousarray(array).tobytes())
        engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    FILE.write_text(json.dumps({f"level-{level:02d}": trace(level) for level in LEVELS}, indent=1) + "\n")

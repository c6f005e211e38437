"""Bundles of random weights that claim to be trained on a level: enough to be played, compared and watched."""

from __future__ import annotations

from pathlib import Path

from conductor.bundle import write_bundle
from tests.conductor.helpers import bundle_parts


def random_bundle(folder: Path, *, weights: int, seed: int, training: str = "a", level: int = 1) -> Path:
    """A bundle whose manifest names this level, training seed and configuration."""
    claims = {"levels": [level], "seeds": [seed], "training_hash": training * 64, "exposure": "full"}
    return write_bundle(folder, **(bundle_parts(weights) | claims)).path

"""The benchmark measures what it says: it runs in small, and its actions are legal and evenly drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import environments


def test_random_legal_actions_are_legal_and_even() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((1, 128)) < 0.05
    masks[0, 3] = True
    drawn = np.bincount(environments.random_legal(np.repeat(masks, 20_000, axis=0), rng.random(20_000)), minlength=128)
    assert (drawn[~masks[0]] == 0).all()
    share = drawn[masks[0]] / 20_000
    assert share == pytest.approx(np.full(share.size, 1 / share.size), abs=0.02)


@pytest.mark.slow
def test_all_tables_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "env", "levels=[1]", "rounds=2", "seconds=0.01", f"out={out}"])
    benchmark.main()
    figures = json.loads(out.read_text())
    assert set(figures["kernel"]) == {f"kernel, level 1, n = {n}" for n in environments.SIZES}
    for row in (*figures["kernel"].values(), figures["single"]["ratio"], figures["vector"]["ratio"]):
        assert 0 < row["min"] <= row["median"] <= row["max"]

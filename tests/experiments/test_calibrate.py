"""The rule to beat: fitted on training instances, kept with its names, and refused once the level has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import calibrate
from experiments.calibrate import CalibrateConfig, Objective, corners, fitted, fitted_weights, live_weights, unfitted
from experiments.errors import ExperimentError
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from pit.rules import weights_of

OPEN = [n for n in LEVELS if load_level(n).order is None]


def config(**changes: object) -> CalibrateConfig:
    given = {"levels": 12, "evaluations": 40, "refine": 30, "restarts": 1, "n": 16, "jobs": 2, "seed": 3, "force": False}
    return CalibrateConfig(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", OPEN)
def test_every_corner_is_a_rule_that_plays(level: int) -> None:
    chosen = load_level(level)
    live = live_weights(chosen)
    score = Objective(chosen, 16)
    found = {name: weights_of(table) for name, table in corners(chosen).items()}
    for name, weights in found.items():
        assert not (weights[~live] != 0).any(), f"{name} uses what the level does not have"
        assert 0 <= score(weights) <= 1
    assert len({w.tobytes() for w in found.values()}) == len(found)


def test_fitting_gains_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "RULES", tmp_path)
    level = load_level(12)
    record = calibrate.calibrate(config())["three_voices"]
    plain = max(Objective(level, 16)(weights_of(table)) for table in corners(level).values())
    best = max(r["score"] for r in record["restarts"])
    assert best > plain
    assert record["steps"] > 600 * record["evaluations"] / 100 and record["evaluations"] >= 40 * len(corners(level))
    assert fitted(level) == record and fitted_weights(level) == record["weights"]
    assert np.isfinite(weights_of(record["weights"])).all()
    assert calibrate.calibrate(config()) == {}  # nothing is left to do
    assert "fitted already" in capsys.readouterr().out
    other = level.model_copy(update={"horizon": level.horizon + 1})
    assert fitted(other) is None
    assert "was fitted on another system or level; until" in unfitted(other, "12")
    assert unfitted(level, "12") == "" == unfitted(load_level(1), "1") and "level-11.json is not there" in unfitted(
        load_level(11), "11"
    )
    words = level.model_copy(update={"hint": "another"})
    assert fitted(words) == record


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(ExperimentError, match="evaluations=3"):
        calibrate.calibrate(config(evaluations=3))


@pytest.mark.parametrize("level", OPEN)
def test_the_kept_rules_are_of_the_levels_as_they_are(level: int) -> None:
    assert fitted(load_level(level)) is not None, f"python -m experiments.calibrate levels={level}"

"""The rule to beat: fitted on training instances, kept with its names, and refused once the level has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import calibrate
from experiments.calibrate import (
    CalibrateConfig,
    Objective,
    corners,
    fitted,
    fitted_weights,
    live_weights,
    rule_path,
    unfitted,
)
from experiments.config import folder_of
from experiments.errors import ExperimentError
from experiments.evaluate import Referee, seated
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
    assert fitted(other) is None and "level_12_three_voices.json is not there" in unfitted(other, "12")
    shutil.copy(rule_path(level), rule_path(other))  # as if it had been changed since
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


def test_a_copy_that_was_changed_keeps_a_rule_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps number and name of the level; a copy that was not changed is that level."""
    rules = tmp_path / "rules"
    shutil.copytree(calibrate.RULES, rules)
    monkeypatch.setattr(calibrate, "RULES", rules)
    suite, text = load_level(11), LEVELS[11].read_text()
    before, same, changed = rule_path(suite).read_bytes(), tmp_path / "same.yaml", tmp_path / "mine.yaml"
    same.write_text(text)
    changed.write_text(text.replace("exposure: full", "exposure: partial"))
    mine = load_level(changed)
    assert (mine.number, mine.name) == (11, suite.name) and mine.exposure != suite.exposure
    assert fitted(load_level(same)) == fitted(suite) and folder_of(str(same)) == "level-11"
    with pytest.raises(ExperimentError, match="calibrate levels=FILE"):
        seated("calibrated", Referee(mine, 4))
    calibrate.calibrate(config(levels=str(changed), evaluations=20, refine=0))
    assert rule_path(mine) == rules / "mine.json" and fitted(mine) is not None
    assert rule_path(suite).read_bytes() == before and fitted(suite) is not None
    for name in ("level-11.yaml", "other/mine.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(changed.read_text())
        with pytest.raises(ExperimentError, match="is for another level's rule; give the level's file another name"):
            calibrate.calibrate(config(levels=[str(changed), str(tmp_path / name)]))


@pytest.mark.parametrize("level", OPEN)
def test_the_kept_rules_are_of_the_levels_as_they_are(level: int) -> None:
    assert fitted(load_level(level)) is not None, f"python -m experiments.calibrate levels={level}"

"""The judge of the detectors: small counts, and that it can tell a bad detector from a good one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import health
from experiments.errors import ExperimentError
from experiments.health import Episode, Finding, HealthConfig, follow
from experiments.health_streams import KINDS, Plan, Stream, Trouble, draw


def config(**changes: object) -> HealthConfig:
    given = {"episodes": 10, "split": "validation", "jobs": 2, "fast": False, "out": None}
    return HealthConfig(**(given | changes))  # type: ignore[arg-type]


def test_the_detectors_do_what_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "health.json"
    found = health.health(config(out=str(out)))
    assert json.loads(out.read_text()) == found
    assert [text for text in health.short(found) if "delay" not in text] == []
    assert found["kinds"][1]["delay"] <= 25  # 15 with many streams
    assert [row["kind"] for row in found["kinds"]] == list(KINDS)
    healing = found["healing"]
    assert healing["estimate_error"] < 0.75 * healing["estimate_error_unhealed"] and 1 < healing["api_calls_lost"] < 50
    said = capsys.readouterr().out
    assert "| api_change |" in said and "| calm (10) | 10,000 |" in said


def test_it_sees_what_is_not_found_and_what_is_cried_for_nothing() -> None:
    outcomes = [(0.9, False)] * 9 + [(0.1, True)]
    blind = Episode("step", 10, wanted=["degradation"], outcomes=outcomes, off=[0.5])
    crying = Episode("calm", 10, findings=[Finding("degradation", False)], outcomes=outcomes)
    others = [Episode(kind, 10, wanted=["api_change"], delays={"api_change": 2}, outcomes=outcomes) for kind in KINDS[2:]]
    found = health.table([(episode, [0.5]) for episode in (blind, crying, *others)], "validation")
    said = " ".join(health.short(found))
    for text in (
        "degradation: precision 0.000",
        "degradation: recall 0.000",
        "step: delay None",
        "calm: 100.00 alarms",
        "Brier",
    ):
        assert text in said
    assert "api_change: recall" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_its_seeds(kind: str) -> None:
    plan = draw(kind, 5)
    assert plan == draw(kind, 5) != draw(kind, 6)
    first, second = (list(Stream(plan).calls()) for _ in range(2))
    assert first == second and len(first) >= plan.calls
    calm = [call.error != 0 for call in first if call.number < 250]
    assert abs(np.mean(calm) - plan.rate) < 0.05


def test_trouble_is_where_the_plan_has_it() -> None:
    plan = Plan("step", 1, 1, 2, 400, 0.1, 30, 0.0, troubles=[Trouble(0, 200, 300, function=1, factor=1.5)])
    calls = list(Stream(plan, heal=False).calls())
    off = {
        (function, inside): np.mean([c.off for c in calls if c.function == function and (200 <= c.number < 300) == inside])
        for function in (0, 1)
        for inside in (False, True)
    }
    assert off[1, True] > 0.2 > max(off[0, True], off[0, False])
    assert follow(plan).delays.keys() == {"degradation", "recovery"}


@pytest.mark.parametrize(
    ("changes", "said"), [({"split": "train"}, "split=train"), ({"episodes": 3}, "episodes=3"), ({"jobs": 0}, "jobs=0")]
)
def test_what_makes_no_table_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        health.health(config(**changes))

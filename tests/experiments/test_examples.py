"""Strategies on real work: what is refused, what is reported, and (slow) real runs of an example under two strategies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.examples import ExamplesConfig, compare_examples, known, report, results


def config(tmp_path: Path, **more: Any) -> ExamplesConfig:
    keys = {
        "examples": ["data"], "repeats": 2, "strategies": ["parallel", "sequential"], "bundles": "none", "score": "total",
        "runs": str(tmp_path / "runs"), "out": None,
    }  # fmt: skip
    return ExamplesConfig(**{**keys, **more})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "speed"}, "needed are one of total, base"),
        ({"repeats": 1}, "repeats=1"),
        ({"strategies": ["parallel"]}, "at least two of adaptive, calibrated, parallel, sequential"),
        ({"strategies": ["parallel", "luck"]}, "at least two of"),
        ({"examples": ["dat"]}, "there is no example 'dat'; known are code_forge, data, documents"),
        ({"out": "/nowhere/at/all.json"}, "its folder does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        compare_examples(config(tmp_path, **change))


def row(total: float) -> dict[str, Any]:
    return {"total": total, "base": 1.0, "makespan": 10 * total, "spent": 2.0, "calls": 5, "failed": 1, "loads": 2}


def test_leads_are_paired_by_repeat() -> None:
    """The first strategy is always 0.1 ahead of the second one, whatever a repeat was like: the interval says so."""
    totals = (0.3, 0.9, 0.5, 0.7)
    found = {"data": {"adaptive": [row(t + 0.1) for t in totals], "parallel": [row(t) for t in totals]}}
    table = results(found, "total")
    entry = table["examples"]["data"]
    lead = entry["leads"]["parallel"]
    assert all(math.isclose(lead[key], 0.1, abs_tol=1e-9) for key in ("difference", "low", "high"))
    mean = entry["strategies"]["parallel"]
    assert mean["total"] == pytest.approx(0.6) and mean["total_low"] < 0.6 < mean["total_high"] and entry["repeats"] == 4
    text = report(table)
    assert "| data | adaptive | 4 | 0.700 [" in text and "| +0.100 [+0.100, +0.100] |" in text and len(text.splitlines()) == 4


@pytest.mark.slow
def test_examples_really_run(tmp_path: Path) -> None:
    out = tmp_path / "examples.json"
    table = compare_examples(config(tmp_path, out=str(out)))
    assert json.loads(out.read_text()) == table and len(list((tmp_path / "runs").iterdir())) == 4
    strategies = table["examples"]["data"]["strategies"]
    assert set(strategies) == {"parallel", "sequential"} and all(0 < s["total"] <= 1 for s in strategies.values())
    assert set(known()) == {"code_forge", "data", "documents"}

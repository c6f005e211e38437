"""Which of two is better: the sentence, its sign, and who may be compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import compare
from experiments.errors import ExperimentError
from tests.experiments.bundles import random_bundle


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare", *words, "n=48", "out=out.json"])
    compare.main()
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_verdict() -> None:
    ahead = {"difference": 0.012, "difference_low": 0.009, "difference_high": 0.015}
    behind = {"difference": -0.012, "difference_low": -0.015, "difference_high": -0.009}
    unclear = {"difference": 0.001, "difference_low": -0.002, "difference_high": 0.004}
    what = "2,048 test instances"
    assert compare.verdict(ahead, what) == f"A is better by 0.0120 (95 %: 0.0090 to 0.0150) on {what}"
    assert compare.verdict(behind, what) == f"B is better by 0.0120 (95 %: 0.0090 to 0.0150) on {what}"
    assert compare.verdict(unclear, what) == (
        f"no difference shown: A minus B is +0.0010 (95 %: -0.0020 to +0.0040) on {what}"
    )


def test_the_optimum_is_better_than_a_rule_either_way_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = run(monkeypatch, tmp_path, "exact_best", "fifo", "level=1")
    two = run(monkeypatch, tmp_path, "b=exact_best", "fifo", "level=1")
    assert one["difference"] == pytest.approx(-two["difference"])
    assert one["probability"] == pytest.approx(1 - two["probability"])
    assert one["probability"] > 0.9
    assert one["verdict"].startswith("A is better") and two["verdict"].startswith("B is better")
    assert one["verdict"] in capsys.readouterr().out


def test_policies_with_their_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for seed in (0, 1):
        random_bundle(tmp_path / f"x-{seed}", weights=seed, seed=seed)
    same = run(monkeypatch, tmp_path, "x-0", "x-0")
    assert (same["difference_low"], same["difference"], same["difference_high"]) == (0, 0, 0)
    assert same["probability"] == 0.5
    assert same["verdict"].startswith("no difference shown")
    assert "One training seed" in capsys.readouterr().out
    several = run(monkeypatch, tmp_path, "x-*", "random")
    assert [row["seeds"] for row in several["rows"]] == [2, 1]
    assert several["rows"][0]["player"] == "A: x-0 (2 seeds)"
    assert "One training seed" not in capsys.readouterr().out


def test_one_side_is_one_method(tmp_path: Path) -> None:
    one = random_bundle(tmp_path / "one", weights=0, seed=0)
    other = random_bundle(tmp_path / "other", weights=1, seed=1, training="b")
    again = random_bundle(tmp_path / "again", weights=2, seed=0)
    with pytest.raises(ExperimentError, match="different configurations"):
        compare.side("a", [str(one), str(other)])
    with pytest.raises(ExperimentError, match="a seed is there twice"):
        compare.side("a", [str(one), str(again)])
    assert compare.side("a", [str(one), str(one)])[0] == str(one), "the same folder twice is one"

"""Several policies and players on the same instances: who is one method, what is written, and that it is whole."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from conductor.bundle import load_bundle
from experiments import calibrate, compare, evaluate, figures
from experiments.errors import ExperimentError
from experiments.train import train
from fq_env.level import load_level
from tests.experiments.bundles import random_bundle
from tests.experiments.training import config

N = 24


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training seeds of one configuration, and a third policy of another."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, claims in {
        "a-0": {"weights": 1, "seed": 0},
        "a-1": {"weights": 2, "seed": 1},
        "b-0": {"weights": 3, "seed": 0, "training": "b"},
    }.items():
        random_bundle(folder / name, **claims)  # type: ignore[arg-type]
    return folder


def test_a_pattern_leaves_empty_folders_out(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "a-0").symlink_to(bundles / "a-0")
    (tmp_path / "a-2").mkdir()
    assert evaluate.paths_of("runs", f"{tmp_path}/a-?") == [tmp_path / "a-0"]
    with pytest.raises(ExperimentError, match="no folder matches"):
        evaluate.paths_of("runs", f"{tmp_path}/*-2")
    assert evaluate.paths_of("runs", f"{tmp_path}/a-2") == [tmp_path / "a-2"]  # by its name: what is wrong is told


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    evaluate.main()


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    return {row["player"]: row for row in json.loads(file.read_text())["rows"]}


def test_seeds_of_one_configuration_are_one_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundles: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(bundles)
    run(monkeypatch, "bundle=*", f"n={N}", "fit=8", f"out={tmp_path / 'out'}")
    out = capsys.readouterr().out
    found = rows_of(tmp_path / "out" / "results.json")
    assert list(found) == ["a-0 (2 seeds)", "b-0", *(p for p in evaluate.PLAYERS if p not in ("calibrated", "lookahead"))]
    both, other = found["a-0 (2 seeds)"], found["b-0"]
    assert (both["seeds"], both["n"], other["seeds"]) == (2, N, 1)
    level = load_level(1)
    single = [
        evaluate.play_policy(load_bundle(bundles / name).policy.logits_many, level, split="test", n=N, exposure="full")
        for name in ("a-0", "a-1", "b-0")
    ]
    assert both["mean"] == pytest.approx(np.mean([s["total"] for s in single[:2]]))
    assert other["difference"] == pytest.approx(both["mean"] - single[2]["total"].mean())
    assert found["fifo"]["against"] == "a-0 (2 seeds)"
    assert found["exact_best"]["mean"] >= max(row["mean"] for row in found.values())
    policies = json.loads((tmp_path / "out" / "results.json").read_text())["policies"]
    assert [p["seed"] for p in policies["a-0 (2 seeds)"]] == [0, 1]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| **b-0** |" in table and "wrong calls" in table
    assert table.split("\n\n", 1)[1].strip() in out
    for name in ("profile.png", "intervals.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_the_same_training_twice_is_not_two_seeds(bundles: Path, tmp_path: Path) -> None:
    random_bundle(tmp_path / "copy", weights=1, seed=0)
    found = evaluate.open_policies("bundles", [str(bundles / "a-0"), str(bundles / "a-*"), str(tmp_path / "copy")])
    groups = evaluate.methods(found)
    assert [[policy.seed for policy in group] for group in groups.values()] == [[0, 1], [0]]


def test_seeds_of_one_method_may_be_of_several_commits(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table takes them for one method, as `compare` does, and both say so."""
    monkeypatch.chdir(bundles)
    _, policies = compare.side("a", ["a-0", "a-1"])
    later = [policies[0], replace(policies[1], commit=f"{policies[1].commit}-dirty")]
    assert {len(group) for group in evaluate.methods(later).values()} == {2}
    (said,) = evaluate.at_several_commits(evaluate.methods(later))
    assert said.startswith("a-0 (2 seeds): trained at 2 commits")
    assert not evaluate.at_several_commits(evaluate.methods(policies))


def test_players_alone_and_a_new_one_by_one_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(evaluate.PLAYERS, "newcomer", evaluate.rule("critical_path"))
    run(monkeypatch, "level=11", f"n={N}", "players=[newcomer,fifo]", f"out={tmp_path / 'out'}")
    found = rows_of(tmp_path / "out" / "results.json")
    assert list(found) == ["random", "fifo", "newcomer"]
    best = max(found["fifo"]["mean"], found["newcomer"]["mean"])
    assert [row["mean"] for row in found.values() if "against" not in row] == [best]
    assert "| newcomer |" in capsys.readouterr().out


def test_a_table_that_cannot_be_finished_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(figures, "intervals", broken)
    with pytest.raises(RuntimeError, match="disk"):
        run(monkeypatch, "level=1", f"n={N}", "players=fifo", f"out={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "level 11 .* levels=11"),
        ({"horizon": 39.0}, "level 11 as it is; .* levels=FILE"),
        ({"horizon": 39.0, "number": 0}, "level warm_forge as it is; .* levels=FILE"),
    ],
)
def test_a_rule_that_is_not_fitted_says_how_to_fit_it(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "RULES", tmp_path)
    with pytest.raises(ExperimentError, match=words):
        evaluate.seated(evaluate.CALIBRATED, evaluate.Referee(load_level(11).model_copy(update=changes), 8))


def test_policies_of_several_levels_need_a_level(bundles: Path, tmp_path: Path) -> None:
    random_bundle(tmp_path / "other", weights=1, seed=0, level=11)
    policies = evaluate.open_policies("bundles", [str(bundles / "a-0"), str(tmp_path / "other")])
    with pytest.raises(ExperimentError, match="levels 1, 11"):
        evaluate.level_for(None, policies)
    assert evaluate.level_for(11, policies).number == 11


def test_figures_show_the_numbers() -> None:
    scores = {"one": np.array([[0.2, 0.4]]), "two": np.array([[0.3, 0.5], [0.5, 0.7]])}
    axes = Figure().add_subplot()
    figures.draw_profiles(axes, scores)
    lines = {line.get_label(): line for line in axes.lines}
    for name, values in scores.items():
        assert lines[name].get_ydata() == pytest.approx([(values > tau).mean() for tau in figures.TAUS])
    (band, _) = axes.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (0.0, 1.0)

    axes = Figure().add_subplot()
    rows = [
        {"player": "late", "policy": True, "iqm": 0.4, "iqm_low": 0.3, "iqm_high": 0.45},
        {"player": "early", "policy": False, "iqm": 0.6, "iqm_low": 0.5, "iqm_high": 0.7},
    ]
    figures.draw_intervals(axes, rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["late", "early"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.3, 0.45], [0.4], [0.5, 0.7], [0.6]]


def test_runs_without_a_bundle_play_their_checkpoint(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(config("total_timesteps=1024", f"seed={seed}", f"folder={tmp_path / f'run-{seed}'}"))
    policies = evaluate.open_policies("runs", str(tmp_path / "run-*"))
    assert not (tmp_path / "run-0" / "bundle").exists()
    ((name, group),) = evaluate.methods(policies).items()
    assert name == f"{tmp_path / 'run-0'} (2 seeds)"
    assert [(policy.levels, policy.seed) for policy in group] == [(("1",), 0), (("1",), 1)]
    records = evaluate.play_method(group, load_level(1), split="validation", n=8)
    assert records.shape == (2, 8)
    best = [json.loads((tmp_path / f"run-{seed}" / "results.json").read_text())["best"]["total"] for seed in (0, 1)]
    assert records["total"].mean(axis=1) == pytest.approx(best)

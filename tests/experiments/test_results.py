"""Results: nothing is trained twice, the best bundle is chosen on validation instances, the README is what is stored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conductor.bundle import load_bundle
from experiments import calibrate, readme, results, run_folder, sources
from experiments.config import level_words
from experiments.errors import ExperimentError
from experiments.evaluate import open_bundle, play_method
from experiments.results import ResultsConfig
from experiments.train import train
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from tests.experiments import training

TINY = [
    *("total_timesteps=2048", "n_envs=32", "n_steps=16", "batch_size=128", "network=mlp", "net_arch=[16]"),
    "stop.when_solved=false",
    *("evaluation.validation=8", "evaluation.test=8", "evaluation.fit=4"),
]
N = 16
EMPTY = f"# Ours\n\n{readme.BEGIN}\n{readme.END}\n\nthe end\n"


def config(folder: Path, *, seeds: int = 2) -> ResultsConfig:
    (folder / "README.md").write_text(EMPTY)
    names = {name: str(folder / name) for name in ("runs", "out", "bundles")}
    return ResultsConfig(levels="1", seeds=seeds, n=N, jobs=2, overrides=TINY, readme=str(folder / "README.md"), **names)


def test_from_trainings_to_the_readme(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = config(tmp_path)
    level = results.wanted(cfg, "1")
    for configuration in level.configurations:
        train(configuration)
    capsys.readouterr()
    (made,) = results.results(cfg)
    out = capsys.readouterr().out
    assert out.count("is used again") == 2 and "trainings, " not in out

    trainings = made["trainings"]
    assert [t["seed"] for t in trainings] == [0, 1]
    assert all(t["cpu_seconds"] > 0 and t["frames"] == 2048 for t in trainings)
    rows = {row["player"]: row for row in made["rows"]}
    assert (rows["trained"]["seeds"], rows["trained"]["n"]) == (2, N)
    assert rows["trained"]["mean"] == pytest.approx(np.mean([t["test"] for t in trainings]))
    assert [name for name, row in rows.items() if row["bound"]] == ["exact_best"]
    assert json.loads((tmp_path / "out" / "level-01.json").read_text()) == made

    kept = tmp_path / "bundles" / "level-01"
    best = int(np.argmax([t["validation"] for t in trainings]))
    assert made["kept"]["seed"] == best == load_bundle(kept).manifest.seeds[0]
    played = play_method([open_bundle(kept)], load_level(1), split="validation", n=N)
    assert played["total"].mean() == pytest.approx(trainings[best]["validation"])

    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Ours\n") and text.endswith("\nthe end\n")
    assert readme.shown(tmp_path / "README.md") == readme.text_of(tmp_path / "out").strip()
    for part in ("[1 first_key](levels/pages/level-01.md)", "proven optimum", "best rule, IQM", "CPU s"):
        assert part in text

    # What is stored is enough, even when the run folders are gone; other code, more seeds or instances are not covered.
    assert results.stored(cfg, level) == made
    assert results.stored(cfg, replace(level, code="other")) is None
    assert results.stored(cfg, replace(level, configuration="other")) is None
    assert results.stored(replace(cfg, seeds=3), level) is None
    assert results.stored(replace(cfg, n=N + 1), level) is None
    (kept / "manifest.json").unlink()
    assert results.stored(cfg, level) is None
    (tmp_path / "out" / "level-01.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"level-01\.json"):
        results.stored(cfg, level)


def test_a_large_bundle_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = config(tmp_path)
    source = tmp_path / "run" / "bundle"
    source.mkdir(parents=True)
    (source / "policy.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(results, "MAX_BUNDLE", 1000)
    level = results.Wanted("level-01", 1, [], "", "")
    assert results.keep(cfg, level, [source.parent], 0) == {"seed": 0, "bytes": 1000}
    assert (tmp_path / "bundles" / "level-01" / "policy.safetensors").stat().st_size == 1000
    monkeypatch.setattr(results, "MAX_BUNDLE", 999)
    assert results.keep(cfg, level, [source.parent], 0) is None
    assert "1,000 bytes and is not kept" in capsys.readouterr().out


def test_levels_of_ones_own_share_no_files(tmp_path: Path) -> None:
    for name in ("one.yaml", "other.yaml"):
        (tmp_path / name).write_text(LEVELS[1].read_text().replace("number: 1\n", "number: 0\n"))
    cfg = config(tmp_path)
    one, other = (results.wanted(cfg, str(tmp_path / name)) for name in ("one.yaml", "other.yaml"))
    assert (
        results.path_of(cfg, one.name).name == "level-one.json" and results.path_of(cfg, other.name).name == "level-other.json"
    )
    folders = [Path(str(level.configurations[0].folder)).parent.name for level in (one, other)]
    assert folders == ["level-one", "level-other"]


def test_a_training_depends_on_its_configuration_and_its_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    one = results.wanted(cfg, "1")
    assert len({c.folder for c in one.configurations}) == 2
    other = results.wanted(replace(cfg, overrides=[*TINY, "gamma=0.9"]), "1")
    assert (one.configuration != other.configuration, one.code == other.code) == (True, True)
    monkeypatch.setattr(results, "code_digest", lambda level: "f" * 64)
    assert results.wanted(cfg, "1").configurations[0].folder != one.configurations[0].folder


def test_the_code_of_a_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {str(file.relative_to(sources.ROOT)) for file in sources.sources()}
    assert {"experiments/train.py", "experiments/algorithms.py", "pit/layout.py", "fq_env/kernel.py"} <= found
    assert not {"experiments/watch.py", "experiments/results.py", "experiments/benchmark.py"} & found

    for name, text in {"train": "from pit import rules", "other": ""}.items():
        (tmp_path / "experiments").mkdir(exist_ok=True)
        (tmp_path / "experiments" / f"{name}.py").write_text(text)
    (tmp_path / "pit").mkdir()
    (tmp_path / "pit" / "__init__.py").touch()
    (tmp_path / "pit" / "rules.py").write_text("import pit.deep\n")
    (tmp_path / "pit" / "deep.py").touch()
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    level = load_level(1)
    before = sources.code_digest(level)
    assert sources.code_digest(level) == before
    assert sources.code_digest(load_level(11)) != before
    (tmp_path / "experiments" / "other.py").write_text("changed = 1\n")
    assert sources.code_digest(level) == before
    (tmp_path / "pit" / "deep.py").write_text("changed = 1\n")
    assert sources.code_digest(level) != before


def test_a_training_depends_on_its_levels_fitted_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rule decides a row of the table, when a training may stop, and what a teacher plays."""
    cfg = training.config("level=11")
    rule = Path(shutil.copy(calibrate.rule_path(load_level(11)), tmp_path))
    monkeypatch.setattr(calibrate, "RULES", tmp_path)

    def now() -> tuple[str, dict[str, Any]]:
        return sources.code_digest(load_level(11)), run_folder.versions(cfg, "full", "")

    digest, then = now()
    assert now()[0] == digest and run_folder.changes(then, now()[1]) == ([], False)
    other = sources.code_digest(load_level(12))
    record = json.loads(rule.read_text())
    record["weights"]["wait"] = {"bias": 7.0}
    rule.write_text(json.dumps(record))
    refitted, about = now()
    assert refitted != digest and sources.code_digest(load_level(12)) == other
    assert run_folder.changes(then, about) == (["another fitted rule"], False)
    del then["rule"]
    assert run_folder.changes(then, about) == ([], False), "a run of before did not note its rule"
    rule.write_text(json.dumps(record | {"digest": "of another level"}))
    useless = sources.code_digest(load_level(11))
    rule.unlink()
    assert useless == sources.code_digest(load_level(11)) != refitted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1,11", ["1", "11"]),
        (11, ["11"]),
        ([1, 11, 1], ["1", "11"]),
        ("1-3,11", ["1", "2", "3", "11"]),
        ("7-11", ["7", "8", "9", "10", "11"]),
        ("all", [str(n) for n in LEVELS]),
        ("a/b.yaml,2", ["a/b.yaml", "2"]),
    ],
)
def test_levels(value: object, expected: list[str]) -> None:
    assert level_words(value) == expected


def test_the_readme_shows_the_stored_results(root: Path) -> None:
    """The committed README, results and bundles belong together."""
    assert readme.shown(root / "README.md") == readme.text_of(root / "results").strip()
    for file in (root / "results").glob("level-*.json"):
        result = json.loads(file.read_text())
        assert result["split"] == "test" and "overrides" not in result["command"]
        if result["kept"] is not None:
            kept = root / "bundles" / file.stem
            assert sum(f.stat().st_size for f in kept.iterdir()) <= results.MAX_BUNDLE
            assert load_bundle(kept).manifest.seeds == [result["kept"]["seed"]]


def stored(level: int, perf: float, lead: float = 0.0, p: float = 1e-6) -> dict[str, Any]:
    """A result as `judge` stores it, as far as sentences go by it: the trained policies beside a rule of perf 1."""
    rule = {"player": "calibrated", "policy": False, "perf": 1.0, "difference": lead, "p": p}
    rows = [{"player": "trained", "policy": True, "perf": perf}, rule]
    return {"level": level, "pass_mark": 0.85, "n": 64, "trainings": [{"frames": 1000}], "rows": rows}


def test_who_is_behind_the_rule_is_named_whatever_its_headroom() -> None:
    """Level 12's was not measured."""
    (_, said) = readme.conclusion([stored(11, 1.1, 0.05), stored(12, 0.9, -0.05)], {11: {"gap": 0.1, "headroom": 0.2}})
    assert (
        "the lead holds on 1: 11, that is on all of them; the largest corrected p of those on which it holds is 1e-06." in said
        and said.endswith("Worse by more than 0.02 perf: 12.")
    )


def test_a_lead_that_does_not_hold_is_named_with_its_p() -> None:
    """Alone the p of level 12 would do; of three it does not, and level 13 is behind."""
    three = [stored(11, 1.1, 0.05), stored(12, 1.02, 0.02, 0.03), stored(13, 0.99, -0.01, 0.04)]
    (_, said) = readme.conclusion(three, {level: {"gap": 0.1, "headroom": 0.2} for level in (11, 12, 13)})
    assert "largest corrected p of those on which it holds is 3e-06." in said
    assert "On 2 of the 3 levels" in said and "the lead holds on 1: 11; not on 12 (0.06), 13 (0.06) (in brackets" in said


def test_what_ppo_alone_does_not_solve_is_named() -> None:
    own = [stored(11, 1.1), stored(12, 0.9), stored(13, 0.5)]
    assert readme.unsolved(own, {}) == []
    for missed, words in (
        ((), "on no level."), ((12,), "on level 12; its own recipe solves it."),
        ((11, 12), "on levels 11, 12; their own recipes solve all of them."),
        ((12, 13), "on levels 12, 13; nor do their own recipes on 13."),
    ):  # fmt: skip
        alone = {level: stored(level, 0.8 if level in missed else 0.86) for level in (11, 12, 13)}
        assert readme.unsolved(own, alone)[1].endswith(words)


@pytest.mark.slow
def test_interrupted_trainings_go_on(tmp_path: Path) -> None:
    """In processes, two at a time: Ctrl-C ends all of them with one sentence, and the same command goes on."""
    cfg = config(tmp_path, seeds=3)
    overrides = ["total_timesteps=40_000", *(key for key in TINY[1:] if not key.startswith("net"))]
    words = [f"{key}={getattr(cfg, key)}" for key in ("levels", "seeds", "n", "jobs", "runs", "out", "bundles", "readme")]
    command = (sys.executable, "-m", "experiments.results", *words, f"overrides=[{','.join(overrides)}]")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("runs/level-01/seed*/best.zip"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "used again by the same command" in err and "Traceback" not in err
    assert not list(tmp_path.glob("out/*"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("goes on where it was interrupted") == 2
    assert len(json.loads((tmp_path / "out" / "level-01.json").read_text())["trainings"]) == 3
    assert "seed 2:" in done.stdout

"""One policy for several levels: who plays what and when, on what evidence levels join, and whole tiny trainings."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import checkpoints, evaluate, export, mixture
from experiments import train as command
from experiments.algorithms import _live
from experiments.config import CHOICES, TrainConfig, exposure_after, shown, title_of, trained_levels
from experiments.curriculum import Curriculum, Replay, Staged, Standing, curriculum_of, given_out, standing
from experiments.errors import ExperimentError
from experiments.interrupts import Interrupted
from experiments.train import resume, train
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from fq_env.live import live_actions, live_columns
from tests.experiments.training import assert_same, config

# Three stages of two rollouts of 512 frames, then two more rollouts; a look after every second rollout.
STAGES = ("level=[1-3]", "mixture.patience=0.25", "mixture.rehearsal=0.4", "network=slots", "net_arch=[8,8]", "seed=1")


class Env:
    """Environments that note what they are told, and play it at once."""

    def __init__(self, n: int) -> None:
        self.playing = np.zeros(n, np.int64)

    def assign(self, levels: np.ndarray) -> None:
        self.playing = levels.copy()


def made(name: str, *overrides: str, levels: str = "[1,2,6]") -> Any:
    cfg = config(f"level={levels}", f"curriculum={name}", "n_envs=20", "batch_size=64", *overrides)
    return curriculum_of(cfg, trained_levels(cfg.level))


def counts(curriculum: Curriculum) -> list[int]:
    return np.bincount(curriculum.assigned, minlength=len(curriculum.levels)).tolist()


# --------------------------------------------------------------------------- shares
def test_shares_are_given_out_with_few_changes() -> None:
    playing = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert given_out(playing, np.array([0.4, 0.3, 0.3])).tolist() == playing.tolist()
    assert given_out(playing, np.array([2.0, 3.0, 5.0])).tolist() == [0, 0, 2, 2, 1, 1, 1, 2, 2, 2]
    assert given_out(playing, np.array([1.0, 0.0, 0.0])).tolist() == [0] * 10
    assert np.bincount(given_out(playing, np.ones(3))).tolist() == [4, 3, 3], "the first of equal remainders"
    rng = np.random.default_rng(0)
    for _ in range(50):
        before, shares = rng.integers(0, 5, 64), rng.random(5)
        after = given_out(before, shares)
        found = np.bincount(after, minlength=5)
        assert (np.abs(found - shares / shares.sum() * 64) < 1).all()
        assert (after != before).sum() == np.maximum(found - np.bincount(before, minlength=5), 0).sum()


def test_uniform_plays_all_levels_equally() -> None:
    assert counts(made("uniform")) == [7, 7, 6]


# --------------------------------------------------------------------------- mastery
def test_the_lower_bound_holds_at_its_rate() -> None:
    """On 64 instances it lies over the true perf, 0.8, about once in twenty times; without noise it is perf itself."""
    rng = np.random.default_rng(0)
    over = 0
    for _ in range(1000):
        random, gain = rng.normal(0.4, 0.1, 64), rng.normal(0.2, 0.05, 64)
        found = standing(random + 0.8 * gain + rng.normal(0, 0.05, 64), random, random + gain)
        over += found.low > 0.8
        assert found.low < found.perf
    assert 30 <= over <= 75
    best = np.linspace(0.4, 0.9, 10)
    exact = standing(best, best - 0.3, best)
    assert (exact.perf, exact.low) == (pytest.approx(1.0), pytest.approx(1.0))
    assert standing(best, best, best) == Standing(pytest.approx(0.65), 0.0, 0.0), "nothing to gain is nothing mastered"


def test_the_gate_opens_on_evidence_only() -> None:
    """Level 1 asks for perf 0.98: a mean over it is no proof, a lower bound is."""
    staged, env = made("staged", "mixture.patience=1"), Env(20)
    assert isinstance(staged, Staged)
    assert (counts(staged), list(staged.in_play())) == ([20, 0, 0], [0])
    staged.looked(100, {0: Standing(0.9, 0.999, 0.97)})
    staged.go_on(env, 100)
    assert (counts(staged), staged.mastered) == ([20, 0, 0], [None, None, None])
    staged.looked(200, {0: Standing(0.9, 0.99, 0.98)})
    assert staged.go_on(env, 200) == {"levels": 2, "mastered": 1}
    assert (staged.joined, staged.passed, staged.mastered) == ([0, 200, None], [None] * 3, [200, None, None])
    assert counts(staged) == [1, 19, 0], "a level that is as good as solved is rehearsed little"
    staged.looked(300, {0: Standing(0.5, 0.5, 0.4), 1: Standing(0.2, 0.1, 0.0)})
    staged.go_on(env, 300)
    assert counts(staged) == [7, 13, 0], "a level that was lost again is rehearsed more: 0.5 beside 1"
    assert staged.mastered[0] == 200, "what became of it is not forgotten"


def test_a_level_whose_time_is_over_is_passed_and_may_be_mastered_later() -> None:
    staged, env = made("staged", "total_timesteps=1000", "mixture.patience=0.2", "mixture.rehearsal=0.3"), Env(20)
    staged.go_on(env, 199)
    assert staged.newest == 0
    staged.go_on(env, 200)
    assert (staged.newest, staged.passed[0]) == (1, 200)
    assert counts(staged) == [6, 14, 0], "the share of rehearsal is the most that earlier levels get"
    staged.go_on(env, 399)
    assert staged.newest == 1
    staged.go_on(env, 400)
    staged.looked(450, {k: Standing(0.9, perf, perf) for k, perf in enumerate((1.0, 0.5, 0.99))})
    staged.go_on(env, 450)
    assert (staged.newest, staged.passed) == (None, [200, 400, None])
    assert staged.mastered == [450, None, 450]
    assert counts(staged) == [2, 16, 2], "after the last stage all share by what they lack: 0.05, 0.5, 0.05"
    assert staged.words(0) == "joined at 0, passed at 200, mastered at 450 frames"
    assert staged.words(1) == "joined at 200, passed at 400, not mastered"


# --------------------------------------------------------------------------- replay
def test_replay_ranks_and_revives() -> None:
    """Ranks 3, 1, 2 weigh 1/3, 1, 1/2; a quarter goes by staleness."""
    replay = made("plr", "mixture.temperature=1", "mixture.staleness=0.25")
    assert isinstance(replay, Replay)
    replay.learned([0.1, 0.4, None])
    np.testing.assert_allclose(replay.shares(), 1.0)
    replay.learned([0.1, 0.4, 0.2])
    np.testing.assert_allclose(replay.shares(), 0.75 * np.array([2, 6, 3]) / 11 + 0.25 / 3)
    replay.learned([None, 0.4, None])
    replay.learned([None, 0.4, 0.3])
    assert (replay.scores, replay.idle) == ([0.1, 0.4, 0.3], [2, 0, 0])
    np.testing.assert_allclose(replay.shares(), 0.75 * np.array([2, 6, 3]) / 11 + 0.25 * np.array([1, 0, 0]))
    sharp = made("plr", "mixture.temperature=0.1", "mixture.staleness=0")
    sharp.learned([0.1, 0.4, 0.2])
    np.testing.assert_allclose(sharp.shares(), np.array([3.0**-10, 1, 2.0**-10]) / (3.0**-10 + 1 + 2.0**-10))


def test_errors_go_to_the_level_that_was_played() -> None:
    """Two environments, three steps; the second changes its level after the second step."""
    replay, env = made("plr"), Env(2)
    replay.begin_rollout(env)  # type: ignore[arg-type]
    for playing in ([0, 0], [0, 1], [0, 1]):
        env.playing = np.array(playing)
        replay.step(env)  # type: ignore[arg-type]
    found = replay.end_rollout(np.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], np.float32))
    assert replay.scores == [pytest.approx((1 + 2 + 3 + 4 + 5) / 5), 6.0, None]
    assert found == {
        "share/level_01": pytest.approx(5 / 6),
        "share/level_02": pytest.approx(1 / 6),
        "share/level_06": 0.0,
        "error/level_01": pytest.approx(3.0),
        "error/level_02": 6.0,
    }


# --------------------------------------------------------------------------- configuration
def test_levels_and_exposures_of_a_training() -> None:
    assert [level.number for level in trained_levels("11,1-3")] == [1, 2, 3, 11], "in the order of their numbers"
    assert [level.number for level in trained_levels(["2-3", 1])] == [1, 2, 3]
    assert [title_of(v) for v in (11, "all", "1-3,11", ["1-3", 11], "a/my_level.yaml")] == [
        "11",
        "all",
        "1-3+11",
        "1-3+11",
        "my_level",
    ]
    assert shown(config("level=[1,2]")) == "hidden"
    assert shown(config("level=[1,6]")) == "full"
    assert shown(config("level=[1,6]", "exposure=partial")) == "partial"
    growing = config("level=1", "exposure=schedule", "phases=[0.25,0.5]", "total_timesteps=1000")
    assert shown(growing) == "full"
    assert [exposure_after(growing, frames) for frames in (0, 249, 250, 499, 500, 1000)] == [
        *("hidden", "hidden", "partial", "partial", "full", "full"),
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("level=21-30",), "names no level; there are 1,"),
        (("level=[1,77]",), "level 77 does not exist"),
        (("level=[1,2,3]", "n_envs=2", "batch_size=32"), "n_envs=2: 3 levels need at least as many environments"),
        (("level=[1,2]", "curriculum=best"), "curriculum=best: must be one of staged, uniform, plr"),
        (("level=[1,2]", "mixture.judged=3"), "mixture.judged=3: must be null or one of level="),
        (("level=[1,2]", "mixture.rehearsal=2"), "mixture.rehearsal=2.0: must lie between 0 and 1"),
        (("level=[1,2]", "+mixture.training.epochs=2"), "mixture.training: unknown key `epochs`: did you mean `n_epochs`"),
        (("exposure=schedule", "phases=[0.5,0.2]"), "phases=.*: must be two ascending shares of the budget"),
    ],
)
def test_what_cannot_be_trained_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        config(*overrides)


def test_several_levels_have_settings_of_their_own() -> None:
    one, several = config("level=1"), config("level=[1,2]")
    assert one.n_epochs == 2, "the command line wins"
    assert one.learning_rate == float(load_level(1).training["learning_rate"])
    assert several.ent_coef == several.mixture.training["ent_coef"] != one.ent_coef
    assert several.gae_lambda == several.mixture.training["gae_lambda"]


def test_what_is_alive_in_one_level_is_alive_in_the_mixture() -> None:
    alive = _live(config("level=[1,6,11]"))
    for name, of in (("live_columns", lambda level: live_columns(level, "full")), ("live_actions", live_actions)):
        each = [of(load_level(number)) for number in (1, 6, 11)]
        np.testing.assert_array_equal(alive[name], each[0] | each[1] | each[2])
        assert all((alive[name] != one).any() for one in each)


# --------------------------------------------------------------------------- whole trainings
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config(*STAGES, "curriculum=staged", "exposure=schedule", "evaluation.test=4", f"folder={folder}"))
    return folder


def test_a_run_leaves_everything(whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from conductor.bundle import load_bundle

    found = json.loads((whole / "results.json").read_text())
    assert [sorted(look["levels"]) for look in found["validation"]] == [["1"], ["1", "2"], ["1", "2", "3"], ["1", "2", "3"]]
    assert {row["level"] for row in found["test"]} == {"1", "2", "3"}
    perfs = [row["perf"] for row in found["test"] if row["player"] == "trained"]
    assert found["score"] == pytest.approx(np.mean(perfs))
    assert found["best"] == max(found["validation"][2:], key=lambda look: look["perf"]), "looks at all levels compare"
    manifest = load_bundle(whole / "bundle").manifest
    assert (manifest.levels, manifest.exposure, manifest.rule.name) == (["1", "2", "3"], "full", "critical_path")
    report = (whole / "report.md").read_text()
    assert "* level 3, prepared_ground: joined at 2,048" in report
    assert "(not solved)" in report
    assert f"{mixture.specialist(load_level(2))['perf']:.3f}" in report  # type: ignore[index]
    assert (whole / "curriculum.png").stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["evaluate", f"bundle={whole / 'bundle'}", "level=3", "n=4", "players=fifo"])
    evaluate.main()
    trained = next(row for row in found["test"] if (row["level"], row["player"]) == ("3", "trained"))
    assert f"{trained['mean']:.4f}" in capsys.readouterr().out, "the bundle plays the test instances as the run did"
    again = whole.parent / "again"
    monkeypatch.setattr(sys, "argv", ["export", f"run={whole}", f"out={again}"])
    export.main()
    assert load_bundle(again).manifest.levels == ["1", "2", "3"]
    with pytest.raises(ExperimentError, match="trained on levels 1, 2, 3; say which to play"):
        evaluate.level_for(None, evaluate.open_policies("bundle", str(whole / "bundle")))


def test_resume_in_the_middle_of_a_stage_is_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """Stopped after 5 rollouts: level 3 joined after 4, and the exposure changed to partial after 2 and to full after 4."""

    def stop(look: Any) -> None:
        if look.frames == 2048:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "cut"
    cut = config(*STAGES, "curriculum=staged", "exposure=schedule", "evaluation.test=4", f"folder={folder}")
    with pytest.raises(Interrupted):
        train(cut, on_look=stop)
    kept = checkpoints.read(folder / "checkpoint.zip")
    curriculum = kept.memory["curriculum"]
    assert (kept.frames, curriculum["newest"], curriculum["joined"]) == (2560, 2, [0, 1024, 2048])
    resume(folder)
    assert_same(whole, folder)


@pytest.mark.parametrize("name", CHOICES["curriculum"])
@pytest.mark.parametrize("algo", [pytest.param(a, marks=() if a == "fast_ppo" else pytest.mark.slow) for a in CHOICES["algo"]])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, name: str, algo: str) -> None:
    cfg = ("level=[1,6]", f"curriculum={name}", f"algo={algo}", "total_timesteps=2048", "mixture.patience=0.3", "n_envs=64")
    for folder in ("one", "two"):
        train(config(*cfg, "n_steps=8", f"folder={tmp_path / folder}"))
    assert_same(tmp_path / "one", tmp_path / "two")
    train(config(*cfg, "n_steps=8", "seed=1", f"folder={tmp_path / 'other'}"))
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "one", tmp_path / "other")


def test_files_of_one_number_are_told_apart(tmp_path: Path) -> None:
    """Copies of levels 1 and 2 without a number, and one that took over a number of the suite."""
    files = {name: tmp_path / f"{name}.yaml" for name in ("one", "other", "third")}
    for (name, file), number in zip(files.items(), (1, 2, 1), strict=True):
        text = LEVELS[number].read_text().replace("title:", "title: Own,")
        file.write_text(text if name == "third" else re.sub(r"number: .*\n", "", text))
    names = [str(file) for file in (files["one"], files["other"], files["third"])]
    run = tmp_path / "run"
    few = ("total_timesteps=512", "evaluation.test=4", "recipe=srl_rlvr", "recipe_options.teacher.episodes=16")
    levels = f"level=[{','.join(names)},1]"
    train(config(levels, "curriculum=uniform", *few, "recipe_options.supervised.batch_size=32", f"folder={run}"))
    found = json.loads((run / "results.json").read_text())
    labels = ["one", "other", "third", "1"]
    assert list(found["validation"][0]["levels"]) == labels
    means = {row["level"]: row["mean"] for row in found["test"] if row["player"] == "random"}
    assert list(means) == labels and len({means[label] for label in labels[:3]}) == 3, "each has its own numbers"
    report = (run / "report.md").read_text()
    for label in ("one", "other", "third"):
        assert len(re.findall(rf"^\| {label} \| ", report, re.M)) == 1 and f"* level {label}: " in report
    assert "| 1 first_key | " in report and "curriculum/share/level_one" in (run / "metrics.csv").read_text()
    assert {"00-teacher-level-one.json", "03-teacher-level-1.json"} <= {file.name for file in (run / "recipe").iterdir()}
    bundle = evaluate.open_policies("bundle", str(run / "bundle"))
    assert sorted(bundle[0].levels) == sorted([*names, "1"])
    with pytest.raises(ExperimentError, match="say which to play, for example level=") as said:
        evaluate.level_for(None, bundle)
    assert evaluate.level_for(str(said.value).rpartition("level=")[2], bundle) is not None
    (tmp_path / "more").mkdir()
    shutil.copy(files["one"], tmp_path / "more")
    with pytest.raises(ExperimentError, match="two of the levels are called one; give one of the files another name"):
        config(f"level=[{files['one']},{tmp_path / 'more' / 'one.yaml'}]")


def test_a_comma_on_the_command_line_is_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr(command, "train", lambda cfg, words: seen.append(cfg) or 0.0)
    monkeypatch.setattr(sys, "argv", ["train", "level=1-2,6", f"folder={tmp_path / 'run'}"])
    command.main()
    assert [level.number for level in trained_levels(seen[0].level)] == [1, 2, 6]


def test_a_training_of_several_levels_stops_when_all_are_solved() -> None:
    stop: Any = SimpleNamespace(when_solved=True, patience=2, progress=0.01)
    of: Any = SimpleNamespace(stop=stop, mixture=SimpleNamespace(judged=None))
    referees: Any = [SimpleNamespace(level=SimpleNamespace(label=str(n), pass_mark=0.8)) for n in (1, 2)]
    examiner = mixture.MixedExaminer(of, referees, "full", None)  # type: ignore[arg-type]

    def look(frames: int, *perfs: float) -> str | None:
        levels = {str(n): Standing(perf, perf, perf) for n, perf in enumerate(perfs, 1)}
        examiner.looks.append(mixture.MixedLook(frames, 0.0, float(np.mean(perfs)), levels))
        return examiner.verdict()

    assert look(1, 0.99) is None, "level 2 is not there yet"
    assert [look(2, 0.9, 0.9), look(3, 0.99, 0.7)] == [None, None]
    stop.patience = None
    assert look(4, 0.9, 0.85) is None, "there is no patience to lose"
    examiner.looks.pop()
    stop.patience = 2
    assert look(4, 0.9, 0.85) == "solved: mean validation perf 0.875, no progress in 2 looks"
    assert examiner.best.frames == 2, "at both levels, although the first look has the highest mean"
    staged = made("staged", levels="[1,2]")
    recalled = mixture.MixedExaminer(examiner.cfg, referees, "full", staged)
    recalled.recall(json.loads(json.dumps(examiner.memory())))
    assert recalled.looks == examiner.looks
    assert (staged.perf, staged.mastered) == ([0.9, 0.85], [1, None]), "a curriculum hears of what it did not see"
    of.mixture.judged = 2
    assert (examiner.best.frames, examiner.looks[0].levels.keys()) == (2, {"1"}), "only later looks are at level 2"
    of.mixture.judged = 1
    assert examiner.best.frames == 1

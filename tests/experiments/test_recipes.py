"""Recipes: what is learned is what was shown, and a recipe that was cut off goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import calibrate
from experiments.errors import ExperimentError
from experiments.evaluate import CALIBRATED, Referee
from experiments.fast_ppo.anchor import Anchor
from experiments.fast_ppo.reward_scale import RewardScale
from experiments.interrupts import Interrupted
from experiments.recipes import phases, retriever, supervised, teacher, trajectories, verifier
from experiments.recipes.around_policy import Around
from experiments.recipes.trajectories import Trajectories
from experiments.recipes.verifier import KEPT
from experiments.train import resume, train
from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from fq_env.live import history_columns
from fq_env.players import lookahead
from pit.layout import WAIT
from tests.experiments.training import assert_same, config, rows
from tests.experiments.trajectories import INSTANCES, learner, replayed

SRL = (
    "recipe=srl_rlvr",
    "recipe_options.visits.rounds=0",
    "recipe_options.teacher.episodes=48",
    "recipe_options.supervised.batch_size=128",
)
OF_11 = ("level=11", "recipe_options.teacher.rollouts=2", "total_timesteps=2048")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --------------------------------------------------------------------------- the teacher and the retriever
def test_advantages_say_how_much_better_the_chosen_action_is() -> None:
    means, masks = np.zeros((2, 128)), np.zeros((2, 128), bool)
    means[0, :4], masks[0, :3], masks[1, 7] = [0.5, 0.2, 0.4, 9.0], True, True
    np.testing.assert_allclose(teacher.advantages_of(means, masks, np.array([0, 7])), [0.2, np.nan])


def test_lookahead_leaves_the_means_by_which_it_chose() -> None:
    level = load_level(11)
    player = lookahead(teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED], 3)
    engine = Engine(level, 8, autoreset="disabled")
    engine.reset(split="train", instances=list(range(8)))
    masks = engine.masks.copy()
    several = masks.sum(axis=1) > 1
    actions = engine.advise(player)
    assert several.any()
    best = np.where(masks, engine.means, -np.inf).argmax(axis=1)
    np.testing.assert_array_equal(actions[several], best[several])


def test_the_retriever_answers_what_was_best_in_similar_instances() -> None:
    features = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [5.0, 1.0], [5.1, 1.0], [5.2, 1.0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.2], [0.0, 0.3], [0.9, 0.1]])
    found = retriever.Retriever(features, scores, 3).best_bases(np.array([[0.05, 1.0], [5.05, 1.0]]))
    assert found.tolist() == [0, 1]
    level = load_level(11)
    described = retriever.descriptions(level, INSTANCES, "full")
    np.testing.assert_array_equal(retriever.descriptions(level, INSTANCES[2:3], "full")[0], described[2])
    assert np.unique(described, axis=0).shape[0] == 6


def test_several_bases_are_all_tried_or_chosen_by_the_retriever() -> None:
    from experiments.recipes.demonstrations import demonstrate

    bases = "recipe_options.teacher.bases=[fifo,critical_path]"
    common = ("level=11", bases, "recipe_options.teacher.rollouts=1", "recipe_options.retriever.library=4")
    counts = []
    for use in ("false", "true"):
        options = config(*common, f"recipe_options.retriever.use={use}").recipe_options
        found = demonstrate(Referee(load_level(11), 4), options, INSTANCES, "full")
        counts.append(len(found))
        assert set(found.bases.tolist()) == {0, 1}
    assert counts == [12, 4 * 2 + 2]


def test_the_plan_of_a_hidden_order_reaches_the_optimum() -> None:
    from fq_env.oracle import exact_best

    found = teacher.play_plans(load_level(2), INSTANCES[:3], "hidden")
    assert found.totals.tolist() == [exact_best(2, "train", int(i)) for i in INSTANCES[:3]]


def test_a_visit_is_the_learners_own() -> None:
    """Its first choices are played as an evaluation plays them; what is drawn is drawn by the random stream given."""
    from experiments.recipes.demonstrations import visit

    model, level = learner("level=11", "network=slots", "net_arch=[8,8]"), load_level(11)

    def visited(greedy: float, seed: int) -> Trajectories:
        options = config("level=11", f"recipe_options.visits.greedy={greedy}").recipe_options
        return visit(model, Referee(level, 4), options, INSTANCES, "full", np.random.default_rng(seed))

    engine = Engine(level, 6, exposure="full", autoreset="disabled")
    engine.reset(split="train", instances=INSTANCES.tolist())
    live = np.arange(6)
    while live.size:
        actions = np.zeros(6, np.int64)
        actions[live], _ = model.first_choice(engine.obs[live], engine.masks[live])
        engine.step(actions)
        live = live[~(engine.terminated | engine.truncated)[live]]
    found = visited(1.0, 0)
    np.testing.assert_array_equal(found.totals, engine.episodes["total"])
    assert replayed(found, at_least_rule=False).verdicts.tolist() == [KEPT] * 6
    np.testing.assert_array_equal(visited(0.0, 0).actions, visited(0.0, 0).actions)
    assert (visited(0.5, 0).totals == found.totals).sum() == 3
    assert (visited(0.0, 0).totals != visited(0.0, 1).totals).all()


def test_what_is_blind_to_history_is_so_in_its_visits_and_has_the_same_teacher() -> None:
    level, blind = load_level(8), load_level("no-history-8")
    player = lookahead(teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED], 1)
    told = [teacher.play(one, player, 0, INSTANCES, "full") for one in (level, blind)]
    np.testing.assert_array_equal(told[0].actions, told[1].actions)
    np.testing.assert_array_equal(told[0].expected, told[1].expected)
    seen: list[np.ndarray] = []

    def looks(engine: Engine, live: np.ndarray, obs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        seen.append(obs[:, history_columns()].any(axis=1))
        first: np.ndarray = masks.argmax(axis=1)
        return first

    for one, remembers in ((level, True), (blind, False)):
        seen.clear()
        teacher.play(one, player, 0, INSTANCES, "full", None, looks)
        assert np.concatenate(seen).any() == remembers


def test_a_training_without_a_fitted_rule_says_whom_it_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "fitted", tmp_path / "weaker"
    train(config(*OF_11, *SRL, f"folder={folders[0]}"))
    assert "no fitted rule" not in capsys.readouterr().err
    monkeypatch.setattr(calibrate, "RULES", tmp_path)
    train(config(*OF_11, *SRL, f"folder={folders[1]}"))
    assert capsys.readouterr().err.startswith("warning: no fitted rule")
    for folder, rule in zip(folders, (CALIBRATED, "critical_path_warm_wait"), strict=True):
        assert f", {rule}'s 0." in (folder / "report.md").read_text()


# --------------------------------------------------------------------------- learning
def test_a_visit_that_takes_too_long_is_ended_by_the_rule() -> None:
    """A learner that waits whenever it may is the rule from some decision on; what it was told before stays."""
    level = load_level(11)
    rule = teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED]

    def waits(engine: Engine, live: np.ndarray, obs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return np.where(masks[:, WAIT], WAIT, masks.argmax(axis=1))

    free, held = (teacher.play(level, lookahead(rule, 1), 0, INSTANCES, "full", None, waits, most) for most in (None, 9))
    assert (held.lengths > 9).all() and held.totals.mean() > free.totals.mean()
    for seen, told in ((free, free.lengths), (held, np.full(len(held), 9))):
        for first, length, known in zip(seen.starts, seen.lengths, told, strict=True):
            assert np.isnan(seen.advantages[first + known : first + length]).all()
            assert (seen.counts[first + known : first + length] == 0).all()
    some = held.starts[:, None] + np.arange(9)
    np.testing.assert_array_equal(held.actions[some], free.actions[free.starts[:, None] + np.arange(9)])
    assert not np.isnan(held.advantages[some]).all()


def test_weights_follow_advantages_and_are_one_elsewhere() -> None:
    advantages = np.array([0.1, 0.3, np.nan, 0.0, 9.0], np.float32)
    mean = np.nanmean(advantages)
    expected = [max(0.1, 0.1 / mean), 0.3 / mean, 1.0, 0.1, 9.0 / mean]
    np.testing.assert_allclose(supervised.weights_of(advantages, True), np.clip(expected, 0.1, 4.0), rtol=1e-6)
    assert (supervised.weights_of(advantages, False) == 1.0).all()


@pytest.mark.parametrize("network", ["mlp", "slots"])
def test_the_supervised_phase_learns_level_1_to_its_optimum_from_the_teacher_alone(tmp_path: Path, network: str) -> None:
    options = ("recipe_options.ppo.use=false", f"network={network}", "net_arch=null", "evaluation.validation=64")
    taught = (
        "recipe_options.teacher.episodes=800", "recipe_options.supervised.batch_size=32", "recipe_options.supervised.epochs=40"
    )  # fmt: skip
    score = train(config(*SRL, *options, *taught, f"folder={tmp_path / 'run'}"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert score == pytest.approx(found["players"]["exact_best"], abs=1e-9)
    assert found["frames"] == 0
    shown, learned = found["recipe"]
    assert (shown["tried"], shown["verdicts"][KEPT]) == (800, 800)
    assert learned["values"]["supervised/agreement"] == 1.0
    assert "800 trajectories tried" in (tmp_path / "run" / "report.md").read_text()
    row = rows(tmp_path / "run")[0]
    assert float(row["teacher/kept"]) == 800 and float(row["supervised/agreement"]) == 1.0


def test_the_controller_pulls_towards_its_target() -> None:
    net = learner()._net

    def after(kl: float, target: float | None = 0.1) -> float:
        anchor = Anchor(net, 4, 1.0, target, 0.5)
        anchor.adapt(kl)
        return anchor.coefficient

    assert after(0.2) == pytest.approx(1.1) and after(5.0) == pytest.approx(1.1)  # too far: more weight, within bounds
    assert after(0.05) == pytest.approx(0.9) and after(0.11) == pytest.approx(1.05)
    assert after(0.1) == after(5.0, None) == 1.0


def test_rewards_are_scaled_by_the_spread_of_returns() -> None:
    rng, scale = np.random.default_rng(0), RewardScale(8, 0.9)
    returns, seen = np.zeros(8), []
    for _ in range(50):
        rewards, dones = rng.normal(1.0, 3.0, 8), rng.random(8) < 0.1
        returns = returns * 0.9 + rewards
        seen.append(returns.copy())
        scaled = scale(rewards, dones)
        np.testing.assert_allclose(scaled, rewards / np.concatenate(seen).std(), rtol=1e-6)
        returns[dones] = 0.0
    before = scale.memory()
    scale.take(np.zeros(0))  # of a level of which nothing was kept
    assert scale.memory() == before
    again = RewardScale(8, 0.9)
    again.remember(json.loads(json.dumps(scale.memory())))
    np.testing.assert_array_equal(again(rewards, dones), scale(rewards, dones))


def test_lookahead_around_the_policy_keeps_its_choice_unless_it_is_sure() -> None:
    options = config("level=11", "recipe_options.rounds.confidence=10").recipe_options.rounds
    options.candidates, options.least = 3, 0.0
    model, level = learner("level=11"), load_level(11)
    around = Around(model, level, options, "full", "potential", 1.0)
    around.engine.reset(split="train", instances=list(range(around.engine.n)))
    live = np.arange(around.engine.n)
    own, _ = model.first_choice(around.engine.obs, around.engine.masks)
    memory = around.engine.memory.copy()
    cautious, _ = around.decide(live, 0)
    options.confidence = 0.0
    bold, advantages = around.decide(live, 0)
    np.testing.assert_array_equal(around.engine.memory, memory)
    assert (cautious != own).sum() < (bold != own).sum()
    assert (bold[cautious != own] != own[cautious != own]).all()
    assert around.engine.masks[live, bold].all()
    assert (advantages[np.isfinite(advantages) & (bold != own)] > 0.0).all()
    found = around.play(INSTANCES)
    assert replayed(found, at_least_rule=False).verdicts.tolist() == [KEPT] * 6


def test_an_episode_that_is_held_out_stays_so() -> None:
    few, many = np.repeat(np.arange(0, 40, 2), 3), np.repeat(np.arange(0, 80, 2), 3)
    held = supervised._held_out(many, 0.2, 5)
    np.testing.assert_array_equal(supervised._held_out(few, 0.2, 5), held[: len(few)])
    assert 0.05 < held.mean() < 0.4
    for share in (0.01, 0.9):
        assert set(supervised._held_out(np.array([4, 4, 7]), share, 5).tolist()) == {False, True}


# --------------------------------------------------------------------------- trainings
def test_plain_is_what_it_was_whatever_the_options_of_recipes(tmp_path: Path) -> None:
    train(config(f"folder={tmp_path / 'one'}"))
    train(
        config(f"folder={tmp_path / 'two'}", "recipe_options.reward_normaliser=true", "recipe_options.ppo.learning_rate=0.1")
    )
    assert_same(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "one" / "recipe").exists()


def test_a_level_keeps_its_teacher_among_several(tmp_path: Path) -> None:
    """Level 20's file says that its teacher does not look ahead, and so it is where 11 and 20 are learned together."""
    few = ("recipe_options.visits.rounds=1", "recipe_options.visits.episodes=2", "recipe_options.teacher.episodes=2")
    train(config(*SRL, "level=[11,20]", "n_envs=32", *few, "recipe_options.ppo.use=false", f"folder={tmp_path / 'run'}"))
    names = sorted(file.name for file in (tmp_path / "run" / "recipe").glob("*.npz"))
    assert [name for name in names if "visits" in name] == ["03-visits-1-level-11.npz"]
    of = {
        level: trajectories.load(tmp_path / "run" / "recipe" / f"0{k}-teacher-level-{level}.npz")
        for k, level in ((0, 11), (1, 20))
    }
    assert len(of[11].expected) > 0 and len(of[20].expected) == 0


VISITS = ("recipe_options.visits.rounds=2", "recipe_options.visits.episodes=8")


@pytest.mark.parametrize(
    "options", [VISITS, ("recipe_options.reward_normaliser=true",), (*VISITS, "level=[2,11]", "n_envs=32")]
)
def test_a_killed_recipe_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Cut off in either phase and in PPO."""
    recipe = (*SRL, *OF_11, "checkpoint.every=1", *options)
    train(config(*recipe, f"folder={tmp_path / 'whole'}"))

    class Cut(Exception):
        """What a power cut would be."""

    for owner, name in ((verifier, "replay"), (supervised, "learn")):
        original = getattr(owner, name)

        def cut(*arguments: Any, **named: Any) -> Any:
            raise Cut

        folder = tmp_path / name
        monkeypatch.setattr(owner, name, cut)
        with pytest.raises(Cut):
            train(config(*recipe, f"folder={folder}"))
        monkeypatch.setattr(owner, name, original)
        resume(folder)
        assert_same(tmp_path / "whole", folder)
    with pytest.raises(Interrupted):
        train(config(*recipe, f"folder={tmp_path / 'ppo'}"), on_look=lambda look: os.kill(os.getpid(), signal.SIGTERM))
    resume(tmp_path / "ppo")
    assert_same(tmp_path / "whole", tmp_path / "ppo")


def test_a_recipe_of_several_levels_goes_on_before_ppo_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervised policy masters the first level, and the curriculum knows it whenever the training is cut off."""
    easy = tmp_path / "easy.yaml"
    easy.write_text(re.sub(r"pass_mark: .*", "pass_mark: 0.3", LEVELS[1].read_text()))
    recipe = (*SRL, f"level=[{easy},2]", "curriculum=staged", "total_timesteps=1536", "evaluation.validation=32")
    recipe = (*recipe, "recipe_options.teacher.episodes=400", "recipe_options.supervised.epochs=30")
    train(config(*recipe, f"folder={tmp_path / 'whole'}"))
    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr(phases.Recipe, "_hold", lambda self: {}["cut"])
        train(config(*recipe, f"folder={tmp_path / 'cut'}"))
    resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    words = [re.findall(r"\* level .*", (tmp_path / name / "report.md").read_text()) for name in ("whole", "cut")]
    assert words[0] == words[1] and "mastered at 0 frames" in words[0][0]


def test_a_recipe_that_is_solved_before_its_last_visit_is_complete(tmp_path: Path) -> None:
    """PPO does not follow, nor does it after a restart."""
    level = tmp_path / "easy.yaml"
    level.write_text(re.sub(r"pass_mark: .*", "pass_mark: 0.0", LEVELS[11].read_text()))
    soon = ("stop.when_solved=true", "stop.patience=1", "stop.progress=1.0", "recipe_options.visits.rounds=4")
    recipe = (*SRL, *OF_11, "recipe_options.visits.episodes=8", *soon, f"level={level}", f"folder={tmp_path / 'run'}")
    train(config(*recipe))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["recipe"][-1]["name"] in ("supervised 1", "supervised 2", "supervised 3"), "it was solved after a visit"
    assert found["stopped"] and "no progress in 1 looks" in found["ended"] and found["frames"] == 0
    (tmp_path / "run" / "results.json").unlink()  # as if killed while the report was made
    resume(tmp_path / "run")
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {key: again[key] for key in ("ended", "best", "validation")} == {
        key: found[key] for key in ("ended", "best", "validation")
    }


def test_expert_iteration_learns_from_all_rounds_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = ("recipe_options.rounds.rounds=2", "recipe_options.rounds.episodes=12", "recipe_options.rounds.futures=2")
    recipe = (*SRL, *OF_11, *rounds, "recipe=expert_iteration", "recipe_options.verifier.at_least_rule=false")
    train(config(*recipe, f"folder={tmp_path / 'whole'}"))
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    names = [facts["name"] for facts in found["recipe"]]
    assert names == ["teacher", "supervised 0", "round 1", "supervised 1", "round 2", "supervised 2"]
    decisions = np.cumsum([facts["decisions"] for facts in found["recipe"] if "decisions" in facts]).tolist()
    assert [look["frames"] for look in found["validation"]] == decisions
    assert [facts["tried"] for facts in found["recipe"][::2]] == [48, 12, 12]

    original, calls = phases.Recipe._around, []

    def cut(self: phases.Recipe, number: int, referee: Referee) -> Any:
        calls.append(number)
        if calls == [1, 2]:
            raise KeyError("cut")
        return original(self, number, referee)

    monkeypatch.setattr(phases.Recipe, "_around", cut)
    with pytest.raises(KeyError):
        train(config(*recipe, f"folder={tmp_path / 'cut'}"))
    resume(tmp_path / "cut")
    assert calls == [1, 2, 2]
    one, two = (dict(np.load(tmp_path / name / "recipe" / "05-supervised-2.npz")) for name in ("whole", "cut"))
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_recipes_play_train_instances_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: set[str | None] = set()
    reset = Engine.reset

    def noted(self: Engine, indices: Any = None, *, split: str | None = None, instances: Any = None) -> None:
        splits.add(split)
        reset(self, indices, split=split, instances=instances)

    cfg = config("level=11", "recipe_options.rounds.futures=2", "recipe_options.rounds.candidates=2")
    level, model = load_level(11), learner("level=11")
    monkeypatch.setattr(Engine, "reset", noted)
    rule = teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED]
    shown = teacher.play(level, lookahead(rule, 1), 0, INSTANCES[:2], "full")
    Around(model, level, cfg.recipe_options.rounds, "full", "potential", 1.0).play(INSTANCES[:2])
    retriever.descriptions(level, INSTANCES, "full")
    replayed(shown)
    assert splits == {"train"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo=ppo", "algo=ppo"),
        ("recipe_options.teacher.bases=[]", "teacher.bases"),
        ("recipe_options.supervised.batch_size=4096", "supervised.batch_size=4096"),
        ("recipe_options.supervised.use=false", "supervised.use=false"),
        ("recipe_options.kl.target=0", "kl.target=0"),
        ("recipe_options.ppo.learning_rate=2", "ppo.learning_rate=2"),
        ("recipe_options.rounds.candidates=1", "rounds.candidates=1"),
        ("recipe=magic", "recipe=magic"),
    ],
)
def test_a_wrong_option_is_named(override: str, says: str) -> None:
    with pytest.raises(ExperimentError, match=says.replace("[", r"\[")):
        config(*SRL, override)


def test_a_wrong_base_player_is_named() -> None:
    with pytest.raises(ExperimentError, match="fifo/x"):
        teacher.base_players(Referee(load_level(11), 4), ["fifo/x"])

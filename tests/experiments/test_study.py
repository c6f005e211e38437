"""Studies: arms that are what they say, nothing trained twice, the same test instances for all, honest pages."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments import calibrate, cli, readme
from experiments.config import for_runtime, level_of, trained_levels
from experiments.errors import ExperimentError
from experiments.results import composed
from experiments.side_by_side import Job
from experiments.study import ablations, arms, old_model
from experiments.study.__main__ import study
from experiments.study.report import Scale, lead, overall, shown
from experiments.study.settings import StudyConfig, checked
from experiments.unmasked import UnmaskedEnv
from fq_env.engine import Engine, make_engine
from fq_env.level import load_level
from fq_env.live import history_columns, live_actions, live_columns, possible_actions
from pit.layout import WAIT

TINY = [
    *("n_envs=32", "n_steps=16", "batch_size=128", "n_epochs=1", "evaluation.validation=8", "evaluation.fit=4"),
    *("network=mlp", "net_arch=[16]", "recipe_options.supervised.batch_size=64", "recipe_options.supervised.epochs=2"),
]
N = 6


def config(folder: Path, **keys: Any) -> StudyConfig:
    """A tiny study in a folder of its own."""
    (folder / "README.md").write_text(f"# Ours\n\n{readme.STUDIES[0]}\n{readme.STUDIES[1]}\n\nthe end\n")
    found = OmegaConf.merge(OmegaConf.structured(StudyConfig), OmegaConf.load(cli.configs_dir() / "study.yaml"))
    own = {"runs": str(folder / "runs"), "out": str(folder / "out"), "readme": str(folder / "README.md")}
    given = {"overrides": TINY, "n": N, "frames": 1024, "seeds": 2, **own, **keys}
    return OmegaConf.to_object(OmegaConf.merge(found, given))  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs are done one after the other in this process; the names of those that were."""
    done: list[str] = []

    def run_all(todo: list[Job], jobs: int) -> None:
        for job in todo:
            job.work()
            done.append(f"{job.name}: {job.told()}")

    monkeypatch.setattr(arms, "run_all", run_all)
    return done


def test_implicit_against_explicit(in_this_process: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = config(tmp_path, levels="11", seeds=1)
    made = study(cfg)
    assert len(in_this_process) == 6 and all("test 0." in told for told in in_this_process)
    (level,) = made["levels"]
    assert 4.0 < level["ratio"] < 6.0
    found = level["arms"]
    assert list(found) == [f"{name}{end}" for end in ("", old_model.NO_MASK) for name in (
        old_model.IMPLICIT, old_model.FRAMES, old_model.CALLS)]  # fmt: skip
    assert found[old_model.CALLS]["frames"] == round(level["ratio"] * 1024) and found[old_model.FRAMES]["frames"] == 1024
    assert "lead" not in found[old_model.IMPLICIT] and found[old_model.IMPLICIT]["steps_per_call"] < 3
    for name in (old_model.FRAMES, old_model.CALLS):
        assert found[name]["steps_per_call"] > 5
        ahead = found[old_model.IMPLICIT]["score"]["mean"] - found[name]["score"]["mean"]
        assert found[name]["lead"]["difference"] == pytest.approx(ahead)
        assert made["overall"][name]["perf"] == pytest.approx(found[name]["lead"]["perf"])
    seeds = {tuple(np.load(file)["instance_seed"].tolist()) for file in (tmp_path / "runs").rglob(f"test-{N}.npy")}
    assert len(seeds) == 1  # everybody played the same test instances
    masks = {str(file): json.loads(json.dumps(OmegaConf.to_container(OmegaConf.load(file))))["masks"] for file in
             (tmp_path / "runs").rglob("config.yaml")}  # fmt: skip
    assert {("no mask" in name) for name, known in masks.items() if not known} == {True} and len(masks) == 6

    assert json.loads((tmp_path / "out" / "implicit_vs_explicit-11.json").read_text()) == made
    page = (tmp_path / "out" / "implicit_vs_explicit-11.md").read_text()
    assert made["conclusion"] in page and made["command"] in page and page.count("| 11 |") == 6
    assert (tmp_path / "out" / "implicit_vs_explicit-11.png").read_bytes().startswith(b"\x89PNG")
    ours = (tmp_path / "README.md").read_text()
    assert f"(out/implicit_vs_explicit-11.md)**, `{made['command']}`: {made['conclusion']}" in ours and ours.endswith(
        "the end\n"
    )

    capsys.readouterr()
    again = study(cfg)
    assert "6 trainings are there, 0 to do" in capsys.readouterr().out
    assert again == made
    one = next((tmp_path / "runs").rglob("results.json"))
    one.unlink()  # as if it had been interrupted: it goes on from its checkpoint
    study(cfg)
    assert len(in_this_process) == 7 and one.is_file()


def test_ablations(in_this_process: list[str], tmp_path: Path) -> None:
    cfg = config(
        tmp_path, name="ablations", levels="11", seeds=1, parts="masks,hold,history,curriculum", teacher=8, rollouts=1
    )
    cfg.overrides.append("recipe_options.verifier.use=false")
    made = study(cfg)
    (level,) = made["levels"]
    assert set(level["arms"]) == {"whole", "no-masks", "no-hold", "no-history", "ppo-alone", "curriculum"}
    assert len(in_this_process) == 6
    assert level["arms"]["no-hold"]["plays"] == "no-hold-11" and level["arms"]["curriculum"]["level"] == "[10,11,12]"
    for part, found in level["worth"].items():
        on, off = ablations.pair_of(part)
        means = [level["arms"][name]["score"]["mean"] for name in (on, off)]
        assert found["difference"] == pytest.approx(means[0] - means[1])
        assert made["overall"][part]["perf"] == pytest.approx(found["perf"])
    page = (tmp_path / "out" / "ablations-11-masks+hold+history+curriculum.md").read_text()  # not the page of all parts
    assert page.count("| 11 |") == 4 and "1,024 frames" in page and "tried in 1 drawn futures" in page


def test_each_part_is_switched_off_alone(tmp_path: Path) -> None:
    settings = checked(config(tmp_path, name="ablations", levels="8,11"))
    found = ablations.arms_of(settings, 8)
    assert "no-hold" not in found and "no-hold" in ablations.arms_of(settings, 11)  # level 8 has no such verb
    whole = set(found[ablations.WHOLE].overrides)
    extra = {
        name: set(arm.overrides) - whole for name, arm in found.items() if arm.plays == "8" and whole <= set(arm.overrides)
    }
    assert extra == {
        "whole": set(),
        "no-masks": {"masks=false"},
        "no-slots": {"network=mlp"},
        "no-supervised": {"recipe_options.supervised.use=false", "recipe_options.kl.use=false"},
        "no-kl": {"recipe_options.kl.use=false"},
    }
    assert found["no-history"].level == "no-history-8"
    assert [level.number for level in trained_levels([7, 8, 9])] == ablations.neighbours(8)


def test_all_arms_have_the_same_teacher(tmp_path: Path) -> None:
    """What differs in an arm is what its name says, and no weaker rule for the teacher to start from and be measured by."""
    settings = checked(config(tmp_path, name="ablations", levels="6-20"))
    for number in settings.numbers:
        rule = calibrate.fitted_weights(load_level(number))
        found = {arm.level for arm in ablations.arms_of(settings, number).values() if "recipe=srl_rlvr" in arm.overrides}
        assert rule and {str(number), f"no-history-{number}"} <= found
        assert all(calibrate.fitted_weights(load_level(level)) == rule for level in found)
    for other in ("plain-11", "explicit-11"):
        assert calibrate.fitted(load_level(other)) is None  # no recipe is trained there


def test_the_curriculum_alone_is_what_its_arms_differ_in(tmp_path: Path) -> None:
    settings = checked(config(tmp_path, name="ablations", levels="1,8,20", parts="curriculum", overrides=["n_epochs=3"]))
    for number in settings.numbers:
        found = ablations.arms_of(settings, number)
        alone, several = (
            asdict(arms.wanted(settings, number, found[name]).configurations[0])
            for name in (ablations.ALONE, ablations.NEIGHBOURS)
        )
        assert several["mixture"].pop("judged") == number and alone["mixture"].pop("judged") is None
        assert {key for key in alone if alone[key] != several[key]} <= {"level", "curriculum", "folder", "recipe_options"}
        plain = composed([f"level={number}", "recipe=plain", "n_epochs=3"])  # whose recipe_options are used by nobody
        assert all(alone[key] == value for key, value in asdict(plain).items() if key in ("n_envs", "n_steps", "ent_coef"))
        assert (alone["recipe"], alone["n_epochs"], alone["total_timesteps"]) == ("plain", 3, 1024)


def test_without_history_only_history_is_missing():
    plain, blind = (make_engine(level, 4, split="validation", autoreset="disabled") for level in (8, "no-history-8"))
    columns = history_columns()
    assert 30 < columns.sum() < 60
    seen = np.zeros(len(columns), bool)
    for engine in (plain, blind):
        engine.reset()
    for _ in range(60):
        np.testing.assert_array_equal(np.where(columns, 0.0, plain.obs), blind.obs)
        np.testing.assert_array_equal(plain.masks, blind.masks)
        seen |= plain.obs.any(axis=0)
        actions = plain.masks.argmax(axis=1)
        for engine in (plain, blind):
            engine.step(actions)
    assert seen[columns].sum() > 10
    assert not (live_columns(load_level("no-history-8")) & columns).any()
    assert (live_columns(load_level(8)) & ~columns == live_columns(load_level("no-history-8"))).all()


def test_a_learner_without_masks_is_warned():
    env, live = UnmaskedEnv(11, 8, 0), live_actions(load_level(11))
    obs = env.reset()
    [masks] = env.env_method("action_masks")
    truth = Engine(11, 8, seed=0)
    truth.reset()
    np.testing.assert_array_equal(masks, possible_actions(obs, live))
    assert (
        masks[:, WAIT].all()
        and not masks[:, ~live].any()
        and not (truth.masks & ~masks).any()
        and (masks & ~truth.masks).any()
    )
    rng, warned = np.random.default_rng(0), 0
    for _ in range(200):
        masks = env.action_masks()
        _, _, _, infos = env.step(np.where(masks, rng.random(masks.shape), -1).argmax(axis=1))
        warned += sum(int(info["score"]["warnings"]) for info in infos if info)
    assert warned > 0
    one, two = UnmaskedEnv(11, 2, 1), UnmaskedEnv(11, 2, 2)
    one.reset(), two.reset()
    two.set_state(one.state())
    np.testing.assert_array_equal(two._engine.masks, one._engine.masks)  # a checkpoint holds what is legal, not what may be
    np.testing.assert_array_equal(one.step(np.full(2, WAIT))[0], two.step(np.full(2, WAIT))[0])


def test_what_is_shown_and_what_is_not():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    good, bad = (hard + rng.normal(shift, 0.05, (3, 400)) for shift in (0.1, 0.0))
    scale = Scale(0.0, 2.0, {})
    found = lead(good, bad, scale)
    assert shown(found) == 1 and shown(lead(bad, good, scale)) == -1 and shown(lead(good, good + 1e-12, scale)) == 0
    assert found["perf"] == pytest.approx(found["difference"] / 2) and found["perf_low"] < found["perf"] < found["perf_high"]
    mean = overall([(good, bad, scale), (bad, good, Scale(0.0, 1.0, {}))])
    assert mean["perf"] == pytest.approx((found["difference"] / 2 - found["difference"]) / 2) and shown(mean) == -1


def level_result(frames: float | None, ratio: float = 5.0) -> dict[str, Any]:
    """A level of which the explicit arm reaches the mark after so many frames, the implicit one after a hundred."""

    def arm(reached: float | None, **more: Any) -> dict[str, Any]:
        one = None if reached is None else {"frames": reached, "calls": reached / 5, "cpu_seconds": reached / 10}
        return {"reached": [one, one, one], **more}

    ahead = {"perf": 0.1, "perf_low": 0.05, "perf_high": 0.2}
    late = {name: arm(frames, lead=ahead) for name in (old_model.FRAMES, old_model.CALLS)}
    return {"ratio": ratio, "arms": {old_model.IMPLICIT: arm(100.0)} | late}


def test_the_conclusion_says_what_was_found():
    sums = {old_model.FRAMES: {"perf": 0.1, "perf_low": 0.05, "perf_high": 0.2}}
    for low, words in ((0.01, "it decides better, too"), (-0.1, "it is not shown to decide better")):
        both = sums | {old_model.CALLS: {"perf": 0.05, "perf_low": low, "perf_high": 0.2}}
        said = old_model.conclude([level_result(600.0), level_result(800.0, 6.0)], both)
        assert said.startswith("Implicit infrastructure trains faster") and words in said
        assert "7.0 × the frames" in said and "5.0 to 6.0 times the frames" in said and "do not get there" not in said
    worse = sums | {old_model.CALLS: {"perf": -0.1, "perf_low": -0.2, "perf_high": -0.05}}
    said = old_model.conclude([level_result(None)], worse)
    assert "it decides worse" in said and "On 1 of 1 levels half of its seeds do not get there" in said
    said = old_model.conclude([level_result(90.0)], worse)
    assert "is not shown to train faster" in said


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "ablation"}, "must be one of implicit_vs_explicit, ablations"),
        ({"levels": "explicit-11"}, "take level 11"),
        ({"parts": "mask"}, "parts=mask: must be among masks"),
        ({"overrides": ["total_timesteps=3"]}, "the study decides this key"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=words):
        study(config(tmp_path, **keys))


def test_levels_that_were_changed_have_no_place_among_the_others():
    with pytest.raises(ExperimentError, match="take level 11"):
        level_of("plain-11")
    with pytest.raises(ExperimentError, match="no teacher knows explicit stages"):
        composed(["level=explicit-11", "recipe=srl_rlvr"])
    for kind in ("explicit", "no-history"):
        with pytest.raises(ExperimentError, match=f"level={kind}-11: has no bundle; take level 11"):
            for_runtime(load_level(f"{kind}-11"), "bundle")
    assert for_runtime(load_level("no-hold-11"), "bundle").system.verbs == ["lite", "standard"]
    with pytest.raises(ExperimentError, match="level 8 has no verb `hold`"):
        trained_levels("no-hold-8")


def test_the_readme_shows_the_stored_studies(root: Path) -> None:
    shown_now = (root / "README.md").read_text().partition(readme.STUDIES[0])[2].partition(readme.STUDIES[1])[0].strip()
    assert shown_now == readme.studies_of(root / "results" / "studies", root)

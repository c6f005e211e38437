"""Trains a conductor: `python -m experiments.train level=11`; `level=all` trains one for several levels, by `curriculum=`.

Checks the configuration, trains with progress and looks at the validation score, plays the held-out test instances against all
players, and leaves a run folder with checkpoint, metrics, curve, report and bundle. `-m level=1,11 seed=0,1` trains several;
`--cfg job` prints the configuration; `resume=RUN` goes on with a run that was interrupted, bit for bit, `resume=FOLDER/latest`
with the one in FOLDER that was begun last.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli
from experiments.config import TrainConfig, derived, exposure_after, finished, register, shown, title_of, trained_levels
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from experiments.callbacks import Overseer
    from experiments.checkpoints import Checkpoint
    from experiments.examiner import Look, Looker
    from experiments.interrupts import Interrupts
    from experiments.run_folder import Run

OnLook = Callable[["Look"], None]


def train(cfg: TrainConfig, command: str = "", on_look: OnLook | None = None) -> float:
    """One training, from a checked configuration to a complete run folder; or `resume`, if the configuration names a run.

    Args:
        cfg: from `config.finished`. With `evaluation.test=0` the test instances are never played and no bundle is made.
        command: what to write into the report as the command to reproduce.
        on_look: called after each look at the validation score. What it raises ends the training and is passed on; the
            run folder is then that of an interrupted run.

    Returns:
        The mean test score of the policy that is kept, the one of the best look; with `evaluation.test=0` its validation
        score. Of several levels the mean perf over them. Finite.

    Raises:
        ExperimentError: the run folder exists or cannot be made or written, or something is not finite.
        interrupts.Interrupted: Ctrl-C or SIGTERM, a KeyboardInterrupt; with a sentence that says how to go on.
    """
    if cfg.resume is not None:
        return resume(Path(cfg.resume), on_look)
    from experiments import run_folder
    from experiments.calibrate import unfitted

    levels, exposure = trained_levels(cfg.level), shown(cfg)
    about = run_folder.versions(cfg, exposure, command or f"python -m experiments.train level={cfg.level} seed={cfg.seed}")
    folder = run_folder.make(cfg)
    try:
        run_folder.begin(folder, cfg, about)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # what nobody can go on with
        raise
    title = levels[0].title if len(levels) == 1 else f"{len(levels)} levels, {cfg.curriculum}"
    seen = cfg.exposure or exposure
    print(f"level {title_of(cfg.level)} ({title}), seed {cfg.seed}, {cfg.algo}, exposure {seen}: {derived(cfg)}", flush=True)
    print(f"run folder: {folder}", flush=True)
    for level in levels:
        if note := unfitted(level, cfg.level if len(levels) == 1 else str(level.number)):
            print(note if cfg.recipe == "plain" else f"warning: {note}", file=sys.stderr, flush=True)
    with run_folder.locked(folder):
        return _train_in(run_folder.read_run(folder), cfg, on_look)


def resume(folder: Path, on_look: OnLook | None = None) -> float:
    """Goes on with an interrupted run from its last checkpoint (without one from the beginning), to a complete run folder.

    `latest` is the run beside it that was begun last; the link of this name leads to complete ones alone.
    On one torch thread, on the same machine and versions, the weights are those of a run that was never interrupted; other
    versions are named in a warning. A run that is complete is left as it is.

    Returns and raises as `train`; also
        ExperimentError: the folder is no run, is in use, or its checkpoint is broken.
    """
    from experiments import run_folder
    from experiments.algorithms import CHECKPOINT

    if folder.name == "latest":
        folder = (run_folder.begun(folder.parent) or [folder])[-1]
    run = run_folder.read_run(folder.resolve(), "resume")
    cfg = run_folder.configuration(run)
    results = run.folder / "results.json"
    if results.is_file():
        found = json.loads(results.read_text(encoding="utf-8"))
        print(
            f"{run.folder} is complete after {found['frames']:,} frames; a larger budget is a new run (its schedules differ)"
            f"{run_folder.unfinished(run.folder.parent)}"
        )
        return float(found["score"])
    now = run_folder.versions(cfg, run.exposure, run.versions["command"])
    differences, other_world = run_folder.changes(run.versions, now)
    with run_folder.locked(run.folder):
        run_folder.tidy(run.folder)
        checkpoint = None
        if (run.folder / CHECKPOINT).is_file():
            from experiments import checkpoints

            checkpoint = checkpoints.read(run.folder / CHECKPOINT)
        frames = checkpoint.frames if checkpoint else 0
        print(f"{run.folder}: goes on after {frames:,} of {cfg.total_timesteps:,} frames", flush=True)
        if differences:
            world = "; the environments begin new episodes" if other_world and frames else ""
            print(f"warning: not bit for bit what it would have been: {', '.join(differences)}{world}", file=sys.stderr)
        how = ", with ".join([f"after {frames:,} frames", *differences])
        return _train_in(run, cfg, on_look, resumed=how, checkpoint=checkpoint, same_world=not other_world)


def _train_in(run: Run, cfg: TrainConfig, on_look: OnLook | None, **going_on: Any) -> float:
    """The training, and what a user is told if it does not come to its end."""
    from experiments import checkpoints
    from experiments.algorithms import CHECKPOINT
    from experiments.interrupts import Interrupted, Interrupts
    from experiments.recipes.told import told

    def kept() -> str:
        frames, phases = checkpoints.frames_of(run.folder / CHECKPOINT), told(run.folder)
        after = f"after `{phases[-1]['name']}`" if phases else "at the beginning"
        after = f"after {frames:,} of {cfg.total_timesteps:,} frames" if frames else after
        return f"`python -m experiments.train resume={shlex.quote(str(run.folder))}` goes on {after}"

    try:
        with Interrupts() as interrupts:
            return _play_out(run, cfg, on_look, interrupts, **going_on)
    except Interrupted as stop:
        raise Interrupted(stop.number, f"interrupted; {kept()}") from None
    except FloatingPointError as error:
        raise ExperimentError(f"{error}, so the training stopped; {kept()}") from None
    except OSError as error:
        what = error.strerror or str(error)
        raise ExperimentError(
            f"{run.folder}: cannot be written ({what}), so the training stopped; once it can, {kept()}"
        ) from None


def _play_out(
    run: Run,
    cfg: TrainConfig,
    on_look: OnLook | None,
    interrupts: Interrupts,
    resumed: str | None = None,
    checkpoint: Checkpoint | None = None,
    same_world: bool = True,
) -> float:
    from experiments.algorithms import make_model, prepare_torch
    from experiments.callbacks import Ended, Overseer
    from experiments.curriculum import curriculum_of
    from experiments.evaluate import Referee
    from experiments.examiner import Examiner
    from experiments.mixture import MixedExaminer
    from experiments.records import METRICS, Rows, make_logger, make_progress, start_wandb
    from experiments.unmasked import UnmaskedEnv
    from fq_env.sb3 import FunctionQuestVecEnv

    prepare_torch(cfg.torch_threads, cfg.matmul_precision)
    levels, folder = trained_levels(cfg.level), run.folder
    frames = checkpoint.frames if checkpoint else 0
    with contextlib.ExitStack() as stack:
        wandb_run = start_wandb(cfg, folder, run.config, run.versions["wandb_id"])
        if wandb_run is not None:
            stack.callback(wandb_run.finish)
        rows = Rows(folder / METRICS, wandb_run, frames)
        logger = make_logger(cfg, folder, rows, None if resumed is None else frames)
        stack.callback(logger.close)
        of_each, exposure = [levels[i % len(levels)] for i in range(cfg.n_envs)], exposure_after(cfg, frames)
        kind = FunctionQuestVecEnv if cfg.masks else UnmaskedEnv
        env = stack.enter_context(
            contextlib.closing(kind(of_each, cfg.n_envs, cfg.seed, exposure=exposure, reward=cfg.reward))
        )
        curriculum = curriculum_of(cfg, levels) if len(levels) > 1 else None
        referees = [Referee(level, cfg.evaluation.fit) for level in levels]
        examiner: Looker = Examiner(cfg, referees[0], run.exposure)
        if curriculum is not None:
            if checkpoint is not None:
                curriculum.recall(checkpoint.memory["curriculum"])
            curriculum.hand_out(env)
            examiner = MixedExaminer(cfg, referees, run.exposure, curriculum)
        players = examiner.prepare()
        print("validation: " + ", ".join(f"{name} {score:.4f}" for name, score in players.items()), flush=True)
        model = make_model(cfg, env)
        model.set_logger(logger)
        if checkpoint is not None:
            checkpoint.restore(model, env, same_world)
        with make_progress(cfg.progress_bar) as progress:
            memory = checkpoint.memory if checkpoint else None
            overseer = Overseer(cfg, folder, rows, examiner, progress, interrupts, memory, on_look, curriculum)
            if resumed is not None:
                overseer.resumed.append(resumed)
            goes_on = True
            if cfg.recipe != "plain":
                from experiments.recipes.phases import Recipe

                recipe = Recipe(cfg, folder, run.exposure, model, overseer)  # type: ignore[arg-type]
                goes_on = recipe.prepare() if checkpoint is None else recipe.go_on(checkpoint.memory["learner"])
            if overseer.stopped is None and goes_on:
                interrupts.waiting = True
                with contextlib.suppress(Ended):
                    model.learn(
                        cfg.total_timesteps - model.num_timesteps, callback=overseer, reset_num_timesteps=checkpoint is None
                    )
                interrupts.waiting = False
        return _conclude(run, cfg, examiner, overseer, players)


def _conclude(run: Run, cfg: TrainConfig, examiner: Looker, overseer: Overseer, players: dict[str, float]) -> float:
    """From a trained learner to the complete folder; every step may have been done before. The score."""
    from experiments import run_folder
    from experiments.algorithms import load_model, torch_logits
    from experiments.export import export_model
    from experiments.files import write_json
    from experiments.recipes.told import told
    from fq_env.level import OuterLevel

    folder, best = run.folder, load_model(run.folder, cfg.algo)
    test = examiner.test(torch_logits(best)) if cfg.evaluation.test else []
    score = examiner.score(test)
    facts = {
        "frames": overseer.rows.rows[-1]["frames"],
        "seconds": overseer.seconds,
        "cpu_seconds": overseer.cpu_seconds,
        "ended": f"stopped early, {overseer.stopped}" if overseer.stopped else overseer.ended,
        "stopped": bool(overseer.stopped),
        "resumed": overseer.resumed,
        "best": asdict(examiner.best),
        "recipe": told(folder),
    }
    examiner.publish(folder, run.versions, overseer.rows.rows, test, facts)
    bundled = bool(test) and not isinstance(trained_levels(cfg.level)[0], OuterLevel)  # which no runtime can play
    if bundled:
        shutil.rmtree(folder / "bundle", ignore_errors=True)  # of an earlier attempt, or exported meanwhile
        levels = trained_levels(cfg.level)
        export_model(best, run, levels, folder / "bundle", golden=64, table=test, rule=examiner.rule, key=cfg.sign)
    if not math.isfinite(score):
        raise FloatingPointError(f"the score of {folder} is {score}")
    rest = {"score": score, "test": test, "validation": examiner.memory(), "players": players, "rule": examiner.rule}
    write_json(folder / "results.json", facts | rest)
    run_folder.point_latest(folder)
    print(f"{facts['ended']} after {facts['frames']:,} frames in {facts['seconds']:.1f} s")
    print(f"best at {examiner.best.frames:,} frames: {examiner.best.words()}\n")
    if test:
        print(f"{examiner.markdown(test)}\n")
    print(f"run folder: {folder}\nreport:     {folder / 'report.md'}")
    if bundled:
        print(f"bundle:     {folder / 'bundle'}", flush=True)
    return float(score)


def _job(config: DictConfig) -> float:
    """What Hydra calls for each job; a user's mistake ends the process with one sentence."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task
    command = shlex.join(["python", "-m", "experiments.train", *(o for o in given if not o.startswith("folder="))])

    def work() -> float:
        if config.resume is not None and len(given) > 1:
            others = " ".join(o for o in given if not o.startswith("resume="))
            raise ExperimentError(f"resume={config.resume}: goes on as the run was configured; leave out {others}")
        return train(finished(config), command)

    return float(cli.guarded(work, TrainConfig, interrupted=None))


def check_words(words: list[str]) -> None:
    """Refuses what Hydra has no plain words for. Raises ExperimentError."""
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"all|[\d,-]*\d[\d,-]*|\S+\.(yaml|json)", word) and "=" not in word and not before.startswith("-"):
            raise ExperimentError(f"`{word}` is not of the form key=value; did you mean `level={word}`?")
        if re.match(r"level=\[?,|level=.*(,\s*,|,\]?$)", word):
            right = re.sub(r",(\s*,)+", ",", word.removeprefix("level=").strip("[]")).strip(", ")
            raise ExperimentError(f"{word}: a level is missing beside a comma; did you mean `level={right}`?")


def main() -> None:
    """The command line: Hydra's, with one sentence and exit code 2 for a user's mistake."""
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        cli.show_help("train", __doc__ or "")
    cli.one_thread_per_process()
    if not {"-m", "--multirun"} & set(sys.argv):  # Hydra would take a comma for a sweep
        sys.argv[1:] = [re.sub(r"^level=([^\[\]'\"]*,[^\[\]'\"]*)$", r"level=[\1]", word) for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach `guarded` instead of ending in Hydra's own report

    def command() -> None:
        import hydra

        check_words(sys.argv[1:])
        register()
        hydra.main(version_base="1.3", config_path=str(cli.configs_dir()), config_name="train")(_job)()

    cli.guarded(command, TrainConfig, "interrupted before the training began")


if __name__ == "__main__":
    main()

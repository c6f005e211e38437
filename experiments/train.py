"""Trains a conductor: `python -m experiments.train level=11`.

Checks the configuration, trains with progress and looks at the validation score, plays the held-out test instances against all
players, and leaves a run folder with checkpoint, metrics, curve, report and bundle. `-m level=1,11 seed=0,1` trains several;
`--cfg job` prints the configuration.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli
from experiments.config import TrainConfig, derived, finished, level_of, register

if TYPE_CHECKING:
    from omegaconf import DictConfig

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended


def train(cfg: TrainConfig, command: str = "") -> float:
    """One training, from a checked configuration to a complete run folder.

    Args:
        cfg: from `config.finished`.
        command: what to write into the report as the command to reproduce.

    Returns:
        The mean test score of the greedy policy, finite.

    Raises:
        ExperimentError: the run folder exists or cannot be made.
        KeyboardInterrupt: Ctrl-C; when the checkpoint is safe, with a sentence that says where.
    """
    from experiments import run_folder

    level = level_of(cfg.level)
    exposure = cfg.exposure or level.exposure
    folder = run_folder.make(cfg)
    about = run_folder.versions(cfg, exposure, command or f"python -m experiments.train level={cfg.level} seed={cfg.seed}")
    run_folder.begin(folder, cfg, about)
    print(f"level {cfg.level} ({level.title}), seed {cfg.seed}, {cfg.algo}, exposure {exposure}: {derived(cfg)}", flush=True)
    return _train_in(folder, cfg, about)


def _train_in(folder: Path, cfg: TrainConfig, about: dict[str, Any]) -> float:
    from experiments import run_folder, statistics
    from experiments.algorithms import make_model, prepare_torch, torch_logits
    from experiments.callbacks import Examiner, Overseer, Rows, make_logger, make_progress, start_wandb
    from experiments.evaluate import Referee, table
    from experiments.export import export_model
    from experiments.files import write_json
    from fq_env.sb3 import make_sb3_env

    prepare_torch(cfg.torch_threads)
    level = level_of(cfg.level)
    run = run_folder.read_run(folder)
    wandb_run = start_wandb(cfg, folder, run.config)
    rows = Rows(folder / "metrics.csv", wandb_run)
    logger = make_logger(cfg, folder, rows)
    env = make_sb3_env(level, cfg.n_envs, cfg.seed, exposure=run.exposure, reward=cfg.reward)
    try:
        referee = Referee(level, cfg.evaluation.fit)
        examiner = Examiner(cfg, referee, run.exposure)
        players = examiner.prepare()
        print("validation: " + ", ".join(f"{name} {score:.4f}" for name, score in players.items()), flush=True)
        model = make_model(cfg, env)
        model.set_logger(logger)
        with make_progress(cfg.progress_bar) as progress:
            overseer = Overseer(cfg, folder, rows, examiner, progress)
            began = time.perf_counter()
            try:
                model.learn(cfg.total_timesteps, callback=overseer)
            except KeyboardInterrupt:
                overseer.save()
                raise KeyboardInterrupt(
                    f"interrupted after {model.num_timesteps:,} frames; the checkpoint is in {folder}, and "
                    f"`python -m experiments.export run={folder}` makes a bundle of it"
                ) from None
            seconds = time.perf_counter() - began
        overseer.save()
        ended = f"stopped early, {overseer.stopped}" if overseer.stopped else "the whole budget was spent"
        test = table(torch_logits(model), referee, split="test", n=cfg.evaluation.test, exposure=run.exposure)
        looks = [vars(look) for look in examiner.looks]
        facts = {"frames": int(model.num_timesteps), "seconds": seconds, "ended": ended, "stopped": bool(overseer.stopped)}
        write_json(
            folder / "results.json", {**facts, "test": test, "validation": looks, "players": players, "rule": referee.fitted}
        )
        run_folder.save_curve(folder / "curve.png", rows.rows, players, f"level {level.number}, {level.name}, seed {cfg.seed}")
        run_folder.report(folder, cfg, about, test, {**facts, "level": level})
        export_model(model, run, level, folder / "bundle", golden=64, table=test, rule=referee.fitted)
        run_folder.point_latest(folder)
    finally:
        logger.close()
        env.close()
        if wandb_run is not None:
            wandb_run.finish()
    score = next(row["mean"] for row in test if row["player"] == statistics.TRAINED)
    print(f"{ended} after {facts['frames']:,} frames in {seconds:.1f} s\n\n{statistics.markdown(test, level.probe)}\n")
    print(f"run folder: {folder}\nreport:     {folder / 'report.md'}\nbundle:     {folder / 'bundle'}", flush=True)
    if not math.isfinite(score):
        raise FloatingPointError(f"the test score of {folder} is {score}")
    return float(score)


def _job(config: DictConfig) -> float:
    """What Hydra calls for each job; a user's mistake ends the process with one sentence."""
    from hydra.core.hydra_config import HydraConfig

    given = [o for o in HydraConfig.get().overrides.task if not o.startswith("folder=")]
    command = shlex.join(["python", "-m", "experiments.train", *given])
    return float(cli.guarded(lambda: train(finished(config), command), TrainConfig))


def main() -> None:
    """The command line: Hydra's, with one sentence and exit code 2 for a user's mistake."""
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        cli.show_help("train", __doc__ or "")
    cli.one_thread_per_process()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach `guarded` instead of ending in Hydra's own report
    import hydra

    register()
    command = hydra.main(version_base="1.3", config_path=str(cli.configs_dir()), config_name="train")(_job)
    try:
        cli.guarded(command, TrainConfig)
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted before the training began'}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()

"""One process of a sweep: takes trainings from the queue, does them, tells what came out."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from experiments import cli
from experiments.errors import ExperimentError
from experiments.files import write_with
from experiments.sweep.settings import Definition, Keys, configured
from experiments.sweep.space import values
from experiments.sweep.study import Study

if TYPE_CHECKING:
    from experiments.examiner import Look


NEVER = 10**9


class Refused(Exception):
    """Parameters that give no score."""


def work(folder: str) -> None:
    """What a worker process does, until nothing is left to do. It ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its workers

    def follow() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    try:
        cli.guarded(lambda: _work(Study(Path(folder))), Keys, interrupted=None)
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # a training ends so on a signal


def _work(study: Study) -> None:
    study.join()
    while (taken := study.take()) is not None:
        queue, trial = taken
        if queue is study.search:
            _search(study, trial)
        else:
            _confirm(study, trial)
    study.leave()


def changes(definition: Definition, params: dict[str, Any]) -> dict[str, Any]:
    """Key -> value of everything in which a trial's training differs from the defaults of training, seed and folder apart."""
    found = {**definition.given, **values(definition.space, params)}
    cfg = configured(definition.base, found)
    found["evaluation.every"] = max(1, math.ceil(cfg.total_timesteps / definition.looks / (cfg.n_envs * cfg.n_steps)))
    return found


def _train(study: Study, params: dict[str, Any], seed: int, folder: Path, on_look: Callable[[Look], None] | None) -> float:
    """One training into `folder`, its output into a file beside it; the validation score.

    Raises:
        Refused: these parameters cannot be trained, or their training diverged.
        optuna.TrialPruned: from `on_look`.
    """
    from experiments.algorithms import CHECKPOINT
    from experiments.train import train

    try:
        different = changes(study.definition, params)
        own = {"seed": seed, "folder": str(folder), "evaluation.test": 0, "checkpoint.every": NEVER}
        cfg = configured(study.definition.base, {**different, **own})
    except ExperimentError as error:
        raise Refused(str(error)) from None
    words = {**different, "seed": seed}
    command = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in words.items()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        try:
            return train(cfg, shlex.join(["python", "-m", "experiments.train", *command]), on_look=on_look)
        except ExperimentError as error:
            if isinstance(error.__context__, FloatingPointError):
                raise Refused(f"{error.__context__}") from None  # these parameters are no good; anything else is not theirs
            raise
        finally:
            (folder / CHECKPOINT).unlink(missing_ok=True)  # nobody goes on with it, and it is most of the folder


def _search(study: Study, trial: Trial) -> None:
    """One trial of the search."""
    definition, began = study.definition, time.perf_counter()
    scores = []
    try:
        for i in range(definition.seeds):

            def on_look(look: Look, i: int = i) -> None:
                budget = definition.base["total_timesteps"]
                step = min(definition.looks, look.frames * definition.looks // budget)
                trial.report(look.total, i * definition.looks + step)
                prunable = definition.warmup * budget <= look.frames < budget and "default" not in trial.user_attrs
                if prunable and trial.should_prune():
                    raise optuna.TrialPruned

            folder = study.folder / "trials" / f"{trial.number:04d}" / f"seed-{definition.base['seed'] + i}"
            scores.append(_train(study, trial.params, definition.base["seed"] + i, folder, on_look))
        study.search.tell(trial, float(np.mean(scores)))
    except optuna.TrialPruned:
        study.search.tell(trial, state=TrialState.PRUNED)
    except Refused as error:
        trial.set_user_attr("refused", str(error))
        study.search.tell(trial, state=TrialState.PRUNED)
    _print_trial(study, trial.number, time.perf_counter() - began)


def _print_trial(study: Study, number: int, seconds: float) -> None:
    trial = study.search.get_trials(deepcopy=False)[number]
    if "refused" in trial.user_attrs:
        result = f"refused: {trial.user_attrs['refused']}"
    else:
        result = f"{'pruned at' if trial.state == TrialState.PRUNED else 'score'} {trial.value:.4f} in {seconds:.0f} s"
    best = study.best()
    leader = f", best {best[0].value:.4f} (trial {best[0].number})" if best else ""
    params = "the configuration as given" if "default" in trial.user_attrs else describe(trial.params)
    print(f"[{len(study.finished())}/{study.wanted}] trial {number}: {result}{leader}; {params}", flush=True)


def describe(params: dict[str, Any]) -> str:
    """Parameters in a line."""
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items())


def _confirm(study: Study, trial: Trial) -> None:
    """One training on a fresh seed, and its policy's scores on fresh validation instances, (instances,) in `totals.npy`."""
    from experiments.algorithms import load_model, torch_logits
    from experiments.config import any_level
    from experiments.evaluate import play_policy
    from experiments.run_folder import read_run

    of, seed, folder = trial.user_attrs["of"], trial.user_attrs["seed"], confirmed_in(study.folder, trial.number)
    try:
        _train(study, trial.params, seed, folder / f"seed-{seed}", None)
        run = read_run(folder / f"seed-{seed}")
        played = play_policy(
            torch_logits(load_model(run.folder, run.config["algo"])),
            any_level(run.config["level"]),
            split="validation",
            first=run.config["evaluation"]["validation"],
            n=study.definition.instances,
            exposure=run.exposure,
        )
        totals = np.asarray(played["total"], np.float64)
        write_with(folder / "totals.npy", lambda temporary: np.save(temporary, totals))
        study.confirmation.tell(trial, float(totals.mean()))
        result = f"score {totals.mean():.4f}"
    except Refused as error:
        trial.set_user_attr("refused", str(error))
        study.confirmation.tell(trial, state=TrialState.PRUNED)
        result = f"refused: {error}"
    print(f"confirmation: {name_of(of)}, seed {seed}: {result}", flush=True)


def confirmed_in(folder: Path, number: int) -> Path:
    """Where a confirmation leaves what it did."""
    return folder / "confirmation" / f"{number:04d}"


def name_of(candidate: int) -> str:
    """A candidate for people."""
    return "the configuration as given" if candidate < 0 else f"trial {candidate}"

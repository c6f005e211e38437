"""Fits the rule to beat, per level: `calibrated`, a linear form of the policy's own features for every verb.

As a command: `python -m experiments.calibrate levels=6,7,11`. From every corner (each variant, warm or not, each special verb
favoured or shunned) and from the rule that was fitted before, a random search and then separable CMA-ES (Ros and Hansen,
PPSN 2008) run on training instances; the best corners are refined, and the winner is chosen on other training instances.
Results: `results/rules/level-NN.json`, named weights; of a level of one's own `NAME.json`, by its file.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from omegaconf import MISSING

from experiments import cli
from experiments.errors import ExperimentError
from experiments.files import read_json, write_json
from experiments.side_by_side import pool
from experiments.sources import ROOT

if TYPE_CHECKING:
    from fq_env.engine import Engine
    from fq_env.level import Level

RULES = ROOT / "results" / "rules"
SIGMA = 0.6  # first step of CMA-ES; features are at most 1
SHUNNED = -2.5  # bias of a verb that a corner does without; a few steps away from being used
CHOICE = 2048  # training instances, not fitted on, on which the restarts are compared


@dataclass
class CalibrateConfig:
    """Keys of the command; explained in `configs/calibrate.yaml`."""

    levels: Any = MISSING
    evaluations: int = MISSING
    refine: int = MISSING
    restarts: int = MISSING
    n: int = MISSING
    jobs: int = MISSING
    seed: int = MISSING
    force: bool = MISSING


class Fit(NamedTuple):
    """One restart: from which corner, its weights, mean total on what it was fitted on, and what it cost."""

    corner: str
    weights: np.ndarray
    score: float
    evaluations: int
    steps: int


# --------------------------------------------------------------------------- where a search begins
def corners(level: Level) -> dict[str, dict[str, dict[str, float]]]:
    """Name -> weights of plain rules: each variant alone or the quickest to begin, by rank, patient or not."""
    from pit.layout import VERBS

    system = level.system
    used = [v for v in VERBS[:3] if any(v in system.usable(f) for f in system.functions)]
    rest = {verb: {"bias": SHUNNED} for verb in system.verbs if verb not in used}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for favoured in used:
        plain = {v: {"bias": 1.0 if v == favoured else -1.5, "rank": 1.0, f"delay_{v}": -0.5} for v in used}
        found[favoured] = plain | {"wait": {"bias": -1.0}} | rest
        patient = plain | {favoured: {"bias": 1.0, "rank": 1.0, f"delay_{favoured}": -3.0}}
        found[f"{favoured}, patient"] = patient | {"wait": {"bias": 0.0}} | rest
    standard = found.get("standard", found[used[0]])
    if len(used) > 1:
        mixed = {v: {"bias": 1.0, "rank": 1.0, f"delay_{v}": -2.0} for v in used}
        found["quickest"] = mixed | {"wait": {"bias": -1.0}} | rest
    for verb in rest:
        found[verb] = standard | {verb: {"bias": 2.5}}
    return found


def starts(level: Level) -> dict[str, dict[str, dict[str, float]]]:
    """`corners`, and the rule that was fitted before, if there is one, for a level or features that may have changed since."""
    from pit.rules import weight_names

    found = corners(level)
    if rule_path(level).is_file():
        known = set(weight_names())
        table = read_json(rule_path(level))["weights"]
        found["as before"] = {a: {f: w for f, w in row.items() if (a, f) in known} for a, row in table.items()}
    return found


def live_weights(level: Level) -> np.ndarray:
    """Which numbers of the rule can matter, bool (N_WEIGHTS,): enabled verbs, on features that can be other than zero."""
    from fq_env.live import live_columns
    from pit.layout import GLOBAL_OFFSET, N_SLOT_FEATURES, POOL_OFFSET, columns
    from pit.rules import weight_names

    live = live_columns(level)
    names = [name for name, _ in columns()]
    slot = {names[k].partition(".")[2] for k in range(N_SLOT_FEATURES) if live[k]}
    whole = {names[k] for k in range(POOL_OFFSET, GLOBAL_OFFSET) if live[k]}
    whole |= {f"global.{names[k]}" for k in range(GLOBAL_OFFSET, len(names)) if live[k] and not names[k].startswith("last_")}
    enabled = {*level.system.verbs, "wait"}
    return np.array([a in enabled and (f == "bias" or f in slot or f in whole) for a, f in weight_names()])


# --------------------------------------------------------------------------- one search
class Objective:
    """Mean total of a calibrated rule on training instances `first` .. `first + n - 1`, counting what it costs."""

    def __init__(self, level: Level, n: int, first: int = 0) -> None:
        from fq_env.engine import Engine

        self.engine: Engine = Engine(level, n, split="train", autoreset="disabled")
        self.n, self.first, self.evaluations, self.steps = n, first, 0, 0

    def __call__(self, weights: np.ndarray) -> float:
        from fq_env.players import calibrated, play_on

        episodes = play_on(self.engine, calibrated(weights), split="train", n=self.n, first=self.first)
        self.evaluations += 1
        self.steps += int(episodes["steps"].sum())
        return float(episodes["total"].mean())


def search(level: Level, start: np.ndarray, live: np.ndarray, evaluations: int, n: int, seed: int, sigma: float) -> Fit:
    """Random search around `start`, then CMA-ES from the best found, over the live numbers.

    They are several hundred, too many for a full covariance: the separable form comes further with as many evaluations.
    """
    from cmaes import SepCMA

    score, rng = Objective(level, n), np.random.default_rng(seed)
    best, top = start.copy(), score(start)
    for _ in range(evaluations // 10):
        tried = start.copy()
        tried[live] += rng.normal(0.0, 1.0, live.sum()) * (rng.random(live.sum()) < 0.3)
        if (value := score(tried)) > top:
            best, top = tried, value
    optimizer = SepCMA(mean=best[live], sigma=sigma, seed=seed)
    while score.evaluations < evaluations and not optimizer.should_stop():
        told = []
        for _ in range(optimizer.population_size):
            x = optimizer.ask()
            tried = start.copy()
            tried[live] = x
            value = score(tried)
            if value > top:
                best, top = tried, value
            told.append((x, -value))
        optimizer.tell(told)
    middle = start.copy()
    middle[live] = optimizer.mean  # often better than the best sample, whose score owes something to chance
    if (value := score(middle)) > top:
        best, top = middle, value
    return Fit("", best, top, score.evaluations, score.steps)


def _search(task: tuple[Level, str, np.ndarray, int, int, int, float]) -> Fit:
    """`search` in a process of its own."""
    level, corner, start, evaluations, n, seed, sigma = task
    return search(level, start, live_weights(level), evaluations, n, seed, sigma)._replace(corner=corner)


def _mean(level: Level, weights: np.ndarray, first: int) -> float:
    from fq_env.players import calibrated, play

    return float(play(level, calibrated(weights), split="train", n=CHOICE, first=first)["total"].mean())


# --------------------------------------------------------------------------- all levels
def level_digest(level: Level) -> str:
    """What a fitted rule depends on: the level but for its words and its training, and the tables of features and rules."""
    from pit.layout import table_hashes

    words = {"title", "teaching", "hint", "probe", "pass_mark", "training", "history", "max_steps", "lookahead_width"}
    exclude: dict[str, Any] = dict.fromkeys(words, True)  # and keys that came later where they are not set: older rules stay
    if not level.gates:
        exclude["gates"] = True
    if level.draw.size is None:
        exclude["draw"] = {"size"}
    later = ("store", "back_off_most_seconds", "back_off_jitter")
    exclude["system"] = {key for key in later if getattr(level.system, key) is None}
    text = level.model_dump_json(exclude=exclude) + repr(sorted(table_hashes().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rule_path(level: Level) -> Path:
    """Where a level's fitted rule is kept: of the suite's, and of what plays as one of them, by number; else by its file."""
    from fq_env.level import load_level
    from fq_env.level_files import LEVELS

    suite = level.number in LEVELS and level_digest(level) == level_digest(load_level(level.number))
    return RULES / (f"level-{level.number:02d}.json" if suite else f"{level.stem}.json")


def check_paths(value: Any, levels: list[Level]) -> None:
    """Refuses levels, given as `levels=value`, whose rules would take each other's place. Raises ExperimentError."""
    paths = [rule_path(level) for level in levels]
    for level, path in zip(levels, paths, strict=True):
        if paths.count(path) > 1 or (re.fullmatch(r"level-\d\d", level.stem) and path.stem == level.stem):
            raise ExperimentError(f"levels={value}: {path} is for another level's rule; give the level's file another name")


def fitted(level: Level) -> dict[str, Any] | None:
    """The fitted rule of a level, as it was written; None if there is none for this level as it is now. A level without
    `hold` has the whole level's, or else a comparison of the two would be one of rules."""
    from fq_env.level import HoldlessLevel, load_level

    whole = load_level(level.number) if isinstance(level, HoldlessLevel) else level
    path = rule_path(whole)
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    return record if record.get("digest") == level_digest(whole) else None


def unfitted(level: Level, name: str) -> str:
    """What to tell people of a level, given as `name`, that has no fitted rule; "" if it has one, or none can be fitted."""
    if level.order is not None or fitted(level) is not None:
        return ""
    why = "was fitted on another system or level" if rule_path(level).is_file() else "is not there"
    return (
        f"no fitted rule: {rule_path(level)} {why}; until `python -m experiments.calibrate levels={name}` has been run, "
        "`calibrated` is not among the players, and guards, like a recipe's teacher and verifier, fall back on "
        "critical_path_warm_wait"
    )


def fitted_weights(level: Level) -> Mapping[str, Mapping[str, float]] | None:
    """The named weights of the fitted rule of a level; None if there is none."""
    record = fitted(level)
    return None if record is None else record["weights"]


def seeds(seed: int, count: int) -> list[int]:
    """Independent seeds of the searches."""
    return [int(x) for x in np.random.SeedSequence(seed).generate_state(count, np.uint32) % (2**31)]


def calibrate(cfg: CalibrateConfig) -> dict[str, dict[str, Any]]:
    """Fits and writes the rules of all levels asked for; their records by the levels' names."""
    from experiments.config import levels_of
    from pit.rules import weights_of

    for key, low in (("evaluations", 20), ("refine", 0), ("restarts", 1), ("n", 16), ("jobs", 1)):
        if getattr(cfg, key) < low:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be at least {low}")
    levels = [level for level in levels_of(cfg.levels) if level.order is None]
    check_paths(cfg.levels, levels)
    todo = [level for level in levels if cfg.force or fitted(level) is None]
    for level in levels:
        if level not in todo:
            print(f"level {level.number or level.name}: fitted already (results/rules); force=true fits it again")
    records: dict[str, dict[str, Any]] = {}
    with pool(cfg.jobs) as workers:
        waiting: dict[Future[Fit], tuple[Level, int]] = {}
        for level in todo:
            begun = starts(level)
            for (name, table), seed in zip(begun.items(), seeds(cfg.seed, len(begun)), strict=True):
                task = (level, name, weights_of(table), cfg.evaluations, cfg.n, seed, SIGMA)
                waiting[workers.submit(_search, task)] = (level, 0)
        found: dict[Path, list[Fit]] = {rule_path(level): [] for level in todo}
        rounds = {rule_path(level): [0, len(starts(level))] for level in todo}  # round, searches under way
        clock = time.perf_counter()
        while waiting:
            future = next(as_completed(waiting))
            level, _ = waiting.pop(future)
            fit, path = future.result(), rule_path(level)
            found[path].append(fit)
            state = rounds[path]
            state[1] -= 1
            print(
                f"level {level.number or level.name}: {fit.corner}: {fit.score:.4f} after {fit.evaluations:,} evaluations "
                f"({time.perf_counter() - clock:.0f} s)",
                flush=True,
            )
            if state[1] == 0 and state[0] == 0 and cfg.refine > 0:  # all corners are in: refine the best ones
                best = sorted(found[path], key=lambda f: -f.score)[: cfg.restarts]
                for fit, seed in zip(best, seeds(cfg.seed + 1, len(best)), strict=True):
                    task = (level, f"{fit.corner}, refined", fit.weights, cfg.refine, 2 * cfg.n, seed, SIGMA / 2)
                    waiting[workers.submit(_search, task)] = (level, 1)
                rounds[path] = [1, len(best)]
            elif state[1] == 0:
                records[level.name] = _write(level, found[path], 2 * cfg.n)
    return records


def _write(level: Level, fits: list[Fit], first: int) -> dict[str, Any]:
    """Chooses among a level's restarts on training instances that none has seen, and keeps the best."""
    from pit.rules import table_of

    best = sorted(fits, key=lambda f: -f.score)[:4]
    scores = [_mean(level, fit.weights, first) for fit in best]
    chosen = best[int(np.argmax(scores))]
    record = {
        "level": level.number,
        "digest": level_digest(level),
        "score": max(scores),
        "corner": chosen.corner,
        "evaluations": sum(f.evaluations for f in fits),
        "steps": sum(f.steps for f in fits),
        "restarts": [{"corner": f.corner, "score": f.score, "evaluations": f.evaluations} for f in fits],
        "weights": table_of(chosen.weights),
    }
    RULES.mkdir(parents=True, exist_ok=True)
    write_json(rule_path(level), record)
    print(
        f"level {level.number or level.name}: {chosen.corner}: {max(scores):.4f} on {CHOICE:,} other instances "
        f"-> {rule_path(level)}",
        flush=True,
    )
    return record


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: calibrate(cli.read("calibrate", CalibrateConfig, sys.argv[1:], __doc__ or "")),
        CalibrateConfig,
        "interrupted: the rules of the levels that were finished are written",
    )


if __name__ == "__main__":
    main()

"""Held-out scores: a policy and the players on the same instances of a split.

As a command: `python -m experiments.evaluate run=RUNDIR` or `bundle=DIR`. As a library: `play_policy`, `Referee`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.files import check_out, write_json

if TYPE_CHECKING:
    from fq_env.level import Level

CHUNK = 512  # environments of one evaluation block: more would leave the cache
RULES = ("random", "fifo", "critical_path")  # players without fitted numbers
WARM_WAIT = "critical_path_warm_wait"
# Logits (k, 128) of observations (k, 512) float32.
Logits = Callable[[np.ndarray], np.ndarray]
# Called with the observations, masks and actions of each batched decision.
Watch = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def greedy(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The legal action of the largest logit, (k,) int64; the smallest index of equals, as the conductor chooses."""
    return np.where(masks, logits, -np.inf).argmax(axis=1)


def play_policy(
    logits: Logits,
    level: Level,
    *,
    split: str,
    n: int,
    first: int = 0,
    exposure: str | None = None,
    watch: Watch | None = None,
) -> np.ndarray:
    """Plays the instances `first`..`first + n - 1` of `split` greedily; their episode records (n,) in that order."""
    from fq_env.engine import Engine

    blocks = []
    for start in range(first, first + n, CHUNK):
        size = min(CHUNK, first + n - start)
        engine = Engine(level, size, exposure=exposure, autoreset="disabled")
        engine.reset(split=split, instances=range(start, start + size))
        actions = np.zeros(size, np.int64)
        live = np.arange(size)
        while live.size:
            obs, masks = engine.obs[live], engine.masks[live]
            actions[live] = greedy(logits(obs), masks)
            if watch is not None:
                watch(obs, masks, actions[live])
            engine.step(actions)
            live = live[~(engine.terminated | engine.truncated)[live]]
        blocks.append(engine.episodes.copy())
    return np.concatenate(blocks)


@dataclass
class Referee:
    """Plays the players on a level's instances, each at most once per set of instances.

    `fit` training instances serve to fit the rule's threshold; validation and test instances never do.
    """

    level: Level
    fit: int = MISSING

    @functools.cached_property
    def fitted(self) -> dict[str, Any]:
        """The parameters of `critical_path_warm_wait`, fitted on training instances."""
        from fq_env.players import fit_warm_wait

        return dict(fit_warm_wait(self.level, split="train", n=self.fit))

    def players(self, split: str, n: int, first: int = 0) -> dict[str, np.ndarray]:
        """Name -> episode records (n,) of every player, and `exact_best` (totals only) where an optimum is proven."""
        from fq_env.players import play

        episodes = {name: play(self.level, name, split=split, n=n, first=first) for name in RULES}
        episodes[WARM_WAIT] = play(self.level, WARM_WAIT, split=split, n=n, first=first, **self.fitted)
        exact = self._exact(split, n, first)
        if exact is not None:
            episodes[statistics.EXACT] = exact
        return episodes

    def _exact(self, split: str, n: int, first: int) -> np.ndarray | None:
        from fq_env.errors import FQError
        from fq_env.players import exact_best

        try:
            totals = [(exact_best(self.level, split, instance),) for instance in range(first, first + n)]
        except FQError:
            return None  # no search covers this level
        return np.array(totals, [("total", "f8")])


def table(
    logits: Logits, referee: Referee, *, split: str, n: int, first: int = 0, exposure: str | None = None
) -> list[dict[str, Any]]:
    """The comparison of a policy with all players; see `statistics.compare` for the rows."""
    trained = play_policy(logits, referee.level, split=split, n=n, first=first, exposure=exposure)
    return statistics.compare({statistics.TRAINED: trained, **referee.players(split, n, first)})


@dataclass
class EvaluateConfig:
    """Keys of the command; explained in `configs/evaluate.yaml`."""

    run: str | None = MISSING
    bundle: str | None = MISSING
    level: Any = MISSING
    split: str = MISSING
    n: int = MISSING
    first: int = MISSING
    fit: int = 256
    out: str | None = MISSING


def policy_from(cfg: EvaluateConfig) -> tuple[Logits, str, str]:
    """The logits of the run's or bundle's policy, its level and its exposure."""
    if (cfg.run is None) == (cfg.bundle is None):
        raise ExperimentError("name either run=RUNDIR or bundle=DIR")
    if cfg.bundle is not None:
        from conductor.bundle import load_bundle

        bundle = load_bundle(Path(cfg.bundle))
        policy = bundle.policy

        def logits(obs: np.ndarray) -> np.ndarray:
            return np.stack([policy.logits(row).copy() for row in obs])

        return logits, bundle.manifest.levels[0], bundle.manifest.exposure
    from experiments.algorithms import load_model, torch_logits
    from experiments.run_folder import read_run

    run = read_run(Path(str(cfg.run)))
    return torch_logits(load_model(run.folder, run.config["algo"])), run.config["level"], run.exposure


def evaluate(cfg: EvaluateConfig) -> list[dict[str, Any]]:
    """Plays, prints and, if asked, writes the table."""
    from experiments.config import level_of

    if cfg.split not in ("train", "validation", "test"):
        raise ExperimentError(f"split={cfg.split}: must be one of train, validation, test")
    if cfg.n < 2 or cfg.first < 0 or cfg.fit < 1:
        raise ExperimentError(
            f"n={cfg.n} first={cfg.first} fit={cfg.fit}: n must be at least 2, first at least 0, fit at least 1"
        )
    check_out(cfg.out)
    logits, trained_on, exposure = policy_from(cfg)
    level = level_of(cfg.level if cfg.level is not None else trained_on)
    rows = table(logits, Referee(level, cfg.fit), split=cfg.split, n=cfg.n, first=cfg.first, exposure=exposure)
    print(statistics.markdown(rows, level.probe))
    if cfg.out is not None:
        write_json(Path(cfg.out), {"level": level.name, "split": cfg.split, "first": cfg.first, "n": cfg.n, "rows": rows})
        print(f"written: {cfg.out}")
    return rows


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: evaluate(cli.read("evaluate", EvaluateConfig, sys.argv[1:], __doc__ or "")),
        EvaluateConfig,
    )


if __name__ == "__main__":
    main()

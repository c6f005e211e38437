"""Which level each environment plays while one policy learns several: `curriculum=staged|uniform|plr`.

A curriculum answers with shares of the environments; between two rollouts they are given out, and an environment takes up its
new level with its next episode. Nothing here draws random numbers, and nothing knows networks: a curriculum hears of value
errors after each rollout and of validation scores after each look. Levels are counted 0..k-1 in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.config import TrainConfig

if TYPE_CHECKING:
    from fq_env.level import Level
    from fq_env.sb3 import FunctionQuestVecEnv

NORMAL_95 = 1.645  # a normal variable lies above minus this with a probability of 95 %


@dataclass(frozen=True)
class Standing:
    """A level's score in one look: the mean, its perf, and the lower end of perf's one-sided 95 % interval."""

    total: float
    perf: float
    low: float


def standing(totals: np.ndarray, random: np.ndarray, best: np.ndarray) -> Standing:
    """The standing of a policy by its totals (n,), beside those of the random player and the best known on the same instances.

    perf is a ratio of two means over the same instances; its standard error is that of the linearised ratio (delta method).
    """
    span = float((best - random).mean())
    if span == 0.0:
        return Standing(float(totals.mean()), 0.0, 0.0)
    perf = float((totals - random).mean()) / span
    rest = totals - random - perf * (best - random)
    error = float(rest.std(ddof=1)) / np.sqrt(len(totals)) / abs(span)
    return Standing(float(totals.mean()), perf, perf - NORMAL_95 * error)


def given_out(playing: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Levels (n,) for n environments by shares (k,), with as few changes to what they play (n,) as possible.

    Every level gets its share of n, rounded down; what is left goes to the largest remainders, the first of equals.
    """
    wanted = shares / shares.sum() * len(playing)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: len(playing) - counts.sum()]] += 1
    levels = playing.copy()
    spare = np.sort(np.concatenate([np.flatnonzero(levels == k)[count:] for k, count in enumerate(counts)]))
    missing = np.maximum(counts - np.bincount(playing, minlength=len(counts)), 0)
    levels[spare] = np.repeat(np.arange(len(counts)), missing)
    return levels


class Curriculum:
    """All levels from the start, equally: `uniform`. The others differ in `in_play`, `shares` and what they take note of."""

    KEPT: tuple[str, ...] = ("perf", "mastered", "assigned")

    def __init__(self, cfg: TrainConfig, levels: list[Level]) -> None:
        k = len(levels)
        self.cfg, self.levels, self._labels = cfg, levels, [level.label for level in levels]
        self.perf: list[float] = [0.0] * k  # of the latest look
        self.mastered: list[int | None] = [None] * k  # frames at the first look that proved it
        self.assigned = [int(i) for i in given_out(np.zeros(cfg.n_envs, np.int64), self.shares())]
        self._played: list[np.ndarray] = []

    def in_play(self) -> range:
        """The levels that are trained by now."""
        return range(len(self.levels))

    def shares(self) -> np.ndarray:
        """Wanted shares of the environments (k,), not negative, their sum positive."""
        return np.ones(len(self.levels))

    # ------------------------------------------------------------------ what happens, in this order
    def begin_rollout(self, env: FunctionQuestVecEnv) -> None:
        """Notes what is played in the first step."""
        self._played = [env.playing]

    def step(self, env: FunctionQuestVecEnv) -> None:
        """Notes what is played in the next step."""
        self._played.append(env.playing)

    def end_rollout(self, advantages: np.ndarray) -> dict[str, float]:
        """Hears of the generalised advantages (steps, n); the levels' shares of the frames and mean absolute advantages."""
        levels = np.stack(self._played[: len(advantages)])
        frames = np.bincount(levels.ravel(), minlength=len(self.levels))
        sums = np.bincount(levels.ravel(), np.abs(advantages).ravel().astype(np.float64), len(self.levels))
        errors = [float(s / f) if f else None for s, f in zip(sums, frames, strict=True)]
        self.learned(errors)
        found = {f"share/{self.name(k)}": float(frames[k] / frames.sum()) for k in range(len(self.levels))}
        return found | {f"error/{self.name(k)}": error for k, error in enumerate(errors) if error is not None}

    def learned(self, errors: list[float | None]) -> None:
        """Hears of the mean absolute advantage of each level's frames, None where there were none."""

    def looked(self, frames: int, found: Mapping[int, Standing]) -> None:
        """Hears of a look at validation instances; a level is mastered from the first that proves it on."""
        for k, now in found.items():
            self.perf[k] = now.perf
            if self.mastered[k] is None and now.low >= self.levels[k].pass_mark:
                self.mastered[k] = frames

    def go_on(self, env: FunctionQuestVecEnv, frames: int) -> dict[str, float]:
        """Between two rollouts: every environment is told what to play from its next episode on; figures to log."""
        self.assigned = [int(i) for i in given_out(np.array(self.assigned), self.shares())]
        self.hand_out(env)
        return {"levels": len(self.in_play()), "mastered": sum(m is not None for m in self.mastered)}

    def hand_out(self, env: FunctionQuestVecEnv) -> None:
        """Tells every environment what to play from its next episode on."""
        env.assign(np.array(self.assigned))

    # ------------------------------------------------------------------
    def name(self, k: int) -> str:
        """`level_07`, `level_STEM` of a file: a level's name among the logged figures."""
        label = self._labels[k]
        return f"level_{label.zfill(2) if label.isdecimal() else label}"

    def words(self, k: int) -> str:
        """What became of a level, for people."""
        frames = self.mastered[k]
        return "not mastered" if frames is None else f"mastered at {frames:,} frames"

    def memory(self) -> dict[str, Any]:
        """All that a training that goes on must know, as JSON; what environments play now is in their own memory."""
        return {name: getattr(self, name) for name in self.KEPT}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Puts a `memory()` back."""
        for name in self.KEPT:
            setattr(self, name, memory[name])


class Staged(Curriculum):
    """Levels join one by one. The next joins when the newest is mastered, or its part of the budget is spent.

    The newest weighs 1, each earlier level what its perf lacks to 1 (at least `floor`); all earlier ones together get at most
    the share `rehearsal`. Once the last stage is over, all levels share by these weights.
    """

    KEPT = (*Curriculum.KEPT, "newest", "joined", "passed")

    def __init__(self, cfg: TrainConfig, levels: list[Level]) -> None:
        self.newest: int | None = 0  # None: the last stage is over
        self.joined: list[int | None] = [0] + [None] * (len(levels) - 1)  # frames at which each level joined
        self.passed: list[int | None] = [None] * len(levels)  # frames at which one was passed without mastery
        super().__init__(cfg, levels)

    def in_play(self) -> range:
        return range(len(self.levels) if self.newest is None else self.newest + 1)

    def shares(self) -> np.ndarray:
        mixture, shares = self.cfg.mixture, np.zeros(len(self.levels))
        lacking = np.clip(1.0 - np.array(self.perf), mixture.floor, 1.0)
        if self.newest is None:
            return lacking
        earlier = lacking[: self.newest]
        together = min(mixture.rehearsal, earlier.sum() / (1.0 + earlier.sum()))
        shares[: self.newest] = together * earlier / earlier.sum() if self.newest else 0.0
        shares[self.newest] = 1.0 - together
        return shares

    def go_on(self, env: FunctionQuestVecEnv, frames: int) -> dict[str, float]:
        if self.newest is not None:
            spent = frames - (self.joined[self.newest] or 0) >= self.cfg.mixture.patience * self.cfg.total_timesteps
            if spent and self.mastered[self.newest] is None:
                self.passed[self.newest] = frames
            if spent or self.mastered[self.newest] is not None:
                following = self.newest + 1
                self.newest = following if following < len(self.levels) else None
                if self.newest is not None:
                    self.joined[self.newest] = frames
        return super().go_on(env, frames)

    def words(self, k: int) -> str:
        joined, passed = self.joined[k], self.passed[k]
        if joined is None:
            return "did not join"
        late = "" if passed is None else f", passed at {passed:,}"
        return f"joined at {joined:,}{late}, {super().words(k)}"


class Replay(Curriculum):
    """Prioritised level replay (Jiang, Grefenstette and Rocktaeschel, ICML 2021, section 3), with whole levels in the place of
    its single instances and shares of environments in the place of draws.

    A level's score is the mean absolute generalised advantage of its frames in the last rollout in which it was played. The
    level of rank r by score weighs r^(-1/temperature); the share `staleness` is given by how many rollouts a level was not
    played, equally where none was left out. Until each has a score all share equally.
    """

    KEPT = (*Curriculum.KEPT, "scores", "idle")

    def __init__(self, cfg: TrainConfig, levels: list[Level]) -> None:
        self.scores: list[float | None] = [None] * len(levels)
        self.idle = [0] * len(levels)  # rollouts since it was played
        super().__init__(cfg, levels)

    def learned(self, errors: list[float | None]) -> None:
        for k, error in enumerate(errors):
            self.idle[k] = 0 if error is not None else self.idle[k] + 1
            if error is not None:
                self.scores[k] = error

    def shares(self) -> np.ndarray:
        mixture, scores = self.cfg.mixture, [score for score in self.scores if score is not None]
        if len(scores) < len(self.scores):
            return np.ones(len(self.scores))
        ranks = np.empty(len(scores))
        ranks[np.argsort(-np.array(scores), kind="stable")] = np.arange(1, len(scores) + 1)
        weights, idle = ranks ** (-1.0 / mixture.temperature), np.array(self.idle, np.float64)
        stale = idle / idle.sum() if idle.any() else np.full(len(idle), 1.0 / len(idle))
        shares: np.ndarray = (1.0 - mixture.staleness) * weights / weights.sum() + mixture.staleness * stale
        return shares


CURRICULA: dict[str, type[Curriculum]] = {"staged": Staged, "uniform": Curriculum, "plr": Replay}


def curriculum_of(cfg: TrainConfig, levels: list[Level]) -> Curriculum:
    """The curriculum that `curriculum=` names."""
    return CURRICULA[cfg.curriculum](cfg, levels)

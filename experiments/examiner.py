"""Looks at the validation score while a policy is trained, the word that it may stop, and the judgement in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments import run_folder, statistics
from experiments.algorithms import torch_logits
from experiments.config import TrainConfig
from experiments.evaluate import Logits, Referee, play_policy, table
from pit import layout

PARTS = ("total", "base", "efficiency", "stability", "optimization", "makespan")
COUNTS = ("steps", "wrong_calls", "warnings", "waits", "holds")


def means(episodes: np.ndarray) -> dict[str, float]:
    """Mean score parts and counts of episode records (n,), n > 0; among them what a level names as its probe."""
    found = {name: float(episodes[name].mean()) for name in (*PARTS, *COUNTS)}
    calls = max(1, int(episodes["calls"].sum()))
    found |= {f"{name}_per_call": float(episodes[name].sum() / calls) for name in ("cold_starts", "loads")}
    return found | {"solved": float((episodes["status"] == layout.SOLVED).mean())}


@dataclass
class Look:
    """One look at the validation score: after how many frames, the mean score, and `statistics.perf` of it."""

    frames: int
    total: float
    perf: float

    def brief(self) -> str:
        """The look in a word, for the progress bar."""
        return f"{self.total:.3f}"

    def words(self) -> str:
        """The look in a line."""
        return f"validation {self.total:.4f}  perf {self.perf:.3f}"


class Looker(Protocol):
    """Who looks at a policy and says when a training may stop: an `Examiner`, or of several levels a `MixedExaminer`."""

    @property
    def referees(self) -> list[Referee]:
        """Who plays the players, of each level one."""

    @property
    def best(self) -> Look:
        """The look whose policy is kept."""

    def memory(self) -> list[dict[str, Any]]:
        """All looks, as JSON."""

    def recall(self, looks: list[dict[str, Any]]) -> None:
        """Puts a `memory()` back."""

    def look(self, model: Any) -> tuple[Look, dict[str, float]]:
        """Plays validation instances with the model as it is now; the look, and figures to log."""

    def verdict(self) -> str | None:
        """Why the training may stop now, or None."""

    def prepare(self) -> dict[str, float]:
        """Lets the players play the validation instances, once, before the first look; their mean scores."""

    @property
    def rule(self) -> dict[str, Any] | None:
        """The fitted parameters of the rule that a bundle falls back on; None where it needs none."""

    def test(self, logits: Logits) -> list[dict[str, Any]]:
        """The policy beside the players on test instances: rows of `statistics.compare`."""

    def score(self, rows: list[dict[str, Any]]) -> float:
        """What a training is worth by its test rows, or without any by its best look."""

    def markdown(self, rows: list[dict[str, Any]]) -> str:
        """Test rows for people."""

    def publish(
        self,
        folder: Path,
        about: dict[str, Any],
        log: list[dict[str, float]],
        rows: list[dict[str, Any]],
        facts: dict[str, Any],
    ) -> None:
        """Writes the picture and the report into the run folder: from its versions, logged rows, test rows and facts."""


@dataclass
class Examiner:
    """Looks at the greedy policy on the validation instances and says when the level is solved."""

    cfg: TrainConfig
    referee: Referee
    exposure: str
    looks: list[Look] = field(default_factory=list)
    proven: bool = False
    _players: dict[str, float] = field(default_factory=dict)

    def prepare(self) -> dict[str, float]:
        """Plays the players once; their mean scores on the validation instances."""
        episodes = self.referee.players("validation", self.cfg.evaluation.validation)
        self._players = {name: float(rows["total"].mean()) for name, rows in episodes.items()}
        self.proven = statistics.EXACT in episodes
        return self._players

    def look(self, model: Any) -> tuple[Look, dict[str, float]]:
        """Plays the validation instances with the model as it is now; the look, and `means` of the episodes."""
        episodes = play_policy(
            torch_logits(model),
            self.referee.level,
            split="validation",
            n=self.cfg.evaluation.validation,
            exposure=self.exposure,
        )
        found = means(episodes)
        best = self._players.get(statistics.EXACT, max(self._players.values()))
        perf = statistics.perf(found["total"], self._players["random"], best)
        self.looks.append(Look(int(model.num_timesteps), found["total"], perf))
        return self.looks[-1], found | {"perf": perf}

    def memory(self) -> list[dict[str, Any]]:
        """All looks, as JSON."""
        return [asdict(look) for look in self.looks]

    def recall(self, looks: list[dict[str, Any]]) -> None:
        """Puts back the looks of a training that goes on."""
        self.looks = [Look(**look) for look in looks]

    @property
    def referees(self) -> list[Referee]:
        """The one referee."""
        return [self.referee]

    @property
    def best(self) -> Look:
        """The look with the highest score, the first of equals."""
        return max(self.looks, key=lambda look: look.total)

    def verdict(self) -> str | None:
        """Why the training may stop now, or None."""
        stop, last = self.cfg.stop, self.looks[-1]
        if not stop.when_solved or last.perf < self.referee.level.pass_mark:
            return None
        if self.proven and last.perf >= stop.mastery:
            return f"mastered: validation perf {last.perf:.3f} of the proven optimum"
        if stop.patience is not None and without_progress([look.total for look in self.looks], stop.progress) >= stop.patience:
            return f"solved: validation perf {last.perf:.3f}, no progress in {stop.patience} looks"
        return None

    @property
    def rule(self) -> dict[str, Any]:
        """The fitted parameters of `critical_path_warm_wait`."""
        return self.referee.fitted

    def test(self, logits: Logits) -> list[dict[str, Any]]:
        """See `Looker`."""
        return table(logits, self.referee, split="test", n=self.cfg.evaluation.test, exposure=self.exposure)

    def score(self, rows: list[dict[str, Any]]) -> float:
        """The mean test score, or the best validation score."""
        return float(next((row["mean"] for row in rows if row["player"] == statistics.TRAINED), self.best.total))

    def markdown(self, rows: list[dict[str, Any]]) -> str:
        """See `Looker`."""
        return statistics.markdown(rows, self.referee.level.probe)

    def publish(
        self,
        folder: Path,
        about: dict[str, Any],
        log: list[dict[str, float]],
        rows: list[dict[str, Any]],
        facts: dict[str, Any],
    ) -> None:
        """See `Looker`."""
        level = self.referee.level
        title = f"level {level.number}, {level.name}, seed {self.cfg.seed}"
        run_folder.save_curve(folder / "curve.png", log, self._players, title)
        run_folder.report(folder, self.cfg, about, rows, {**facts, "level": level})


def without_progress(scores: Sequence[float], progress: float) -> int:
    """How many scores there are since the last that was higher than all before it by more than `progress`."""
    best, since = -np.inf, 0
    for score in scores:
        since += 1
        if score > best + progress:
            best, since = score, 0
    return since

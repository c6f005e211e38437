"""What happens beside the learning: scores, rows of metrics, progress, looks at the validation score, stopping, checkpoints.

Looks happen between an update and the next rollout, so what was scored is what is saved when the training stops there.
"""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from experiments import statistics
from experiments.algorithms import CHECKPOINT, torch_logits
from experiments.config import TrainConfig
from experiments.evaluate import Referee, play_policy
from experiments.files import write_text, write_with

RECENT = 1000  # episodes in the progress bar's score
PARTS = (
    "total",
    "base",
    "efficiency",
    "stability",
    "optimization",
    "makespan",
    "steps",
    "wrong_calls",
    "warnings",
    "waits",
    "holds",
)


class Rows(KVWriter):
    """Every logged value as one row per number of frames: for `metrics.csv`, the learning curve and W&B."""

    def __init__(self, path: Path, wandb_run: Any = None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._wandb = wandb_run
        self._sent = 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds the values to the row of `step`; a row goes to W&B once the next one has begun."""
        if not self.rows or self.rows[-1]["frames"] != step:
            self._send()
            self.rows.append({"frames": step})
        values = {key: float(value) for key, value in key_values.items() if isinstance(value, (int, float, np.number))}
        self.rows[-1].update(values)

    def _send(self) -> None:
        if self._wandb is not None:
            for row in self.rows[self._sent :]:
                self._wandb.log(row, step=int(row["frames"]))
        self._sent = len(self.rows)

    def save(self) -> None:
        """Writes all rows as CSV, atomically."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def close(self) -> None:
        """Sends and saves what is left."""
        self._send()
        self.save()


def make_logger(cfg: TrainConfig, folder: Path, rows: Rows) -> Logger:
    """stable-baselines3's logger with our writers: rows always, TensorBoard if wanted."""
    writers: list[KVWriter] = [rows]
    if cfg.tensorboard:
        writers.append(TensorBoardOutputFormat(str(folder / "tensorboard")))
    return Logger(str(folder), writers)


def start_wandb(cfg: TrainConfig, folder: Path, config: dict[str, Any]) -> Any:
    """A W&B run, or None if it is disabled (then the package is not even imported)."""
    if cfg.wandb.mode == "disabled":
        return None
    import wandb

    return wandb.init(
        project=cfg.wandb.project,
        mode=cfg.wandb.mode,  # type: ignore[arg-type]
        dir=str(folder),
        name=folder.name,
        group=folder.parent.name,
        config=config,
        settings=wandb.Settings(silent=True),
    )


@dataclass
class Look:
    """One look at the validation score."""

    frames: int
    total: float
    perf: float


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

    def look(self, model: Any) -> Look:
        """Plays the validation instances with the model as it is now."""
        rows = play_policy(
            torch_logits(model),
            self.referee.level,
            split="validation",
            n=self.cfg.evaluation.validation,
            exposure=self.exposure,
        )
        total = float(rows["total"].mean())
        best = self._players.get(statistics.EXACT, max(self._players.values()))
        look = Look(int(model.num_timesteps), total, statistics.perf(total, self._players["random"], best))
        self.looks.append(look)
        return look

    def verdict(self) -> str | None:
        """Why the training may stop now, or None."""
        stop, last = self.cfg.stop, self.looks[-1]
        if not stop.when_solved or last.perf < self.referee.level.pass_mark:
            return None
        if self.proven and last.perf >= stop.mastery:
            return f"mastered: validation perf {last.perf:.3f} of the proven optimum"
        if self._without_progress() >= stop.patience:
            return f"solved: validation perf {last.perf:.3f}, no progress in {stop.patience} looks"
        return None

    def _without_progress(self) -> int:
        best, since = -np.inf, 0
        for look in self.looks:
            since += 1
            if look.total > best + self.cfg.stop.progress:
                best, since = look.total, 0
        return since


class Overseer(BaseCallback):
    """The one callback of a training: it gathers scores and, between rollouts, looks, logs, stops and saves."""

    def __init__(self, cfg: TrainConfig, folder: Path, rows: Rows, examiner: Examiner, progress: Progress) -> None:
        super().__init__()
        self.cfg, self.folder, self.rows, self.examiner, self.progress = cfg, folder, rows, examiner, progress
        self.stopped: str | None = None
        self._rollouts = 0
        self._finished: list[dict[str, Any]] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._bar: TaskID | None = None
        self._began = self._lap = 0.0
        self._lap_frames = 0

    def _on_training_start(self) -> None:
        self._began = self._lap = time.perf_counter()
        self._bar = self.progress.add_task("", total=self.cfg.total_timesteps, score="–", fps="–", validation="–")

    def _on_rollout_start(self) -> None:
        """After an update (or before the first): a look when one is due, then the row of the frames so far."""
        every = self.cfg.evaluation.every
        if every and self._rollouts and self._rollouts % every == 0:
            self.look()
            self.stopped = self.examiner.verdict()
            self.save()
        if self._rollouts:
            self.logger.dump(self.num_timesteps)
        self._rollouts += 1

    def _on_step(self) -> bool:
        if self.locals["dones"].any():
            self._finished += [info["score"] for info in self.locals["infos"] if info]
        return self.stopped is None

    def _on_rollout_end(self) -> None:
        """The scores of the episodes that ended in this rollout, and the progress bar."""
        done, self._finished = self._finished, []
        if done:
            for part in PARTS:
                self.logger.record(f"episode/{part}", float(np.mean([score[part] for score in done])))
            calls = max(1, sum(score["calls"] for score in done))
            for count in ("cold_starts", "loads"):
                self.logger.record(f"episode/{count}_per_call", sum(score[count] for score in done) / calls)
            self.logger.record("episode/solved", float(np.mean([score["status"] == 1 for score in done])))
            self.logger.record("episode/finished", len(done))
            self._recent += [score["total"] for score in done]
        now = time.perf_counter()
        fps = (self.num_timesteps - self._lap_frames) / (now - self._lap)
        self._lap, self._lap_frames = now, self.num_timesteps
        self.logger.record("time/frames_per_second", fps)
        self.logger.record("time/seconds", now - self._began)
        if self._bar is not None:
            score = f"{np.mean(self._recent):.3f}" if self._recent else "–"
            self.progress.update(self._bar, completed=self.num_timesteps, score=score, fps=f"{fps:,.0f}")

    def _on_training_end(self) -> None:
        if self.stopped is not None:
            return  # the last look was at these weights; only a first step of one more rollout has been taken since
        if not self.examiner.looks or self.examiner.looks[-1].frames != self.num_timesteps:
            self.look()
        self.logger.dump(self.num_timesteps)

    def look(self) -> None:
        """One look at the validation score, told to the logger, the bar and, without a terminal, as a line."""
        look = self.examiner.look(self.model)
        self.logger.record("validation/total", look.total)
        self.logger.record("validation/perf", look.perf)
        if self._bar is not None:
            self.progress.update(self._bar, validation=f"{look.total:.3f}")
        if self.progress.disable:
            rate = look.frames / (time.perf_counter() - self._began)
            print(f"{look.frames:>10,} frames  {rate:>8,.0f}/s  validation {look.total:.4f}  perf {look.perf:.3f}", flush=True)

    def save(self) -> None:
        """The learner and the rows so far, atomically."""
        write_with(self.folder / CHECKPOINT, self.model.save)
        self.rows.save()


def make_progress(visible: bool) -> Progress:
    """The bar: share of the budget, frames per second, recent scores, time left. Invisible without a terminal."""
    progress = Progress(
        TextColumn("{task.percentage:>3.0f} %"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[fps]} frames/s  score {task.fields[score]}  validation {task.fields[validation]}"),
        TimeRemainingColumn(),
        disable=not visible,
    )
    progress.disable = progress.disable or not progress.console.is_terminal
    return progress

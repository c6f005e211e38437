"""What happens beside the learning: scores, looks at the validation score, stopping, checkpoints.

All of it between an update and the next rollout: what was scored there is what is saved there, and a training that goes on
from there has lost nothing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import Progress, TaskID
from stable_baselines3.common.callbacks import BaseCallback

from experiments import checkpoints
from experiments.algorithms import BEST, CHECKPOINT
from experiments.config import TrainConfig, ent_coef_after, exposure_after
from experiments.errors import ExperimentError
from experiments.examiner import Look, Looker, means
from experiments.fast_ppo import FastPPO
from experiments.interrupts import Interrupted, Interrupts
from experiments.records import Rows
from fq_env.state import EPISODE
from pit import layout

if TYPE_CHECKING:
    from experiments.curriculum import Curriculum

RECENT = 1000  # episodes in the progress bar's score
# The observation's column that is 0 where the clock has moved since the last action (or an episode has just begun).
ACTIONS_SINCE_CLOCK = layout.GLOBAL_OFFSET + [f.name for f in layout.GLOBAL_FEATURES].index("actions_since_clock")


class Ended(Exception):
    """The training is solved; raised between two rollouts, so that not one frame more is played."""


class Overseer(BaseCallback):
    """The one callback of a training: it gathers scores and, between rollouts, looks, logs, stops and saves.

    Args:
        memory: what `memory()` gave to the checkpoint from which this training goes on; None at its beginning.
        on_look: called after each look, when all is logged and saved; what it raises ends the training.
        curriculum: says what each environment plays; None: all play one level.

    Raises:
        FloatingPointError: a reward, a loss or a weight is not finite; the checkpoint before it is whole.
        ExperimentError: an environment offers no legal action.
        Interrupted: a signal was noted; the checkpoint is written.
        Ended: the level is solved; the checkpoint is written.
        OSError: a file cannot be written; the checkpoint before it is whole.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        folder: Path,
        rows: Rows,
        examiner: Looker,
        progress: Progress,
        interrupts: Interrupts,
        memory: dict[str, Any] | None = None,
        on_look: Callable[[Look], None] | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        self.cfg, self.folder, self.rows, self.examiner, self.progress = cfg, folder, rows, examiner, progress
        self.interrupts, self.on_look, self.curriculum = interrupts, on_look, curriculum
        self.stopped: str | None = None
        self.ended = "the whole budget was spent"  # how, if not `stopped`
        self.resumed: list[str] = []
        self.seconds = self.cpu_seconds = 0.0  # of training, wall and CPU, over all parts of it
        self._recent: deque[float] = deque(maxlen=RECENT)
        if memory is not None:
            examiner.recall(memory["looks"])
            self.stopped, self.resumed = memory["stopped"], memory["resumed"]
            self.seconds, self.cpu_seconds = memory["seconds"], memory["cpu_seconds"]
            self._recent.extend(memory["recent"])
        self._done = 0  # frames up to which everything here is done
        self._bar: TaskID | None = None
        self._lap = self._cpu_lap = self._learning = self._rollout_seconds = 0.0
        self._gather()

    def memory(self) -> dict[str, Any]:
        """What a training that goes on from here must know, as JSON."""
        return {
            "looks": self.examiner.memory(),
            "stopped": self.stopped,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "recent": list(self._recent),
            "curriculum": None if self.curriculum is None else self.curriculum.memory(),
            "learner": self.model.memory() if isinstance(self.model, FastPPO) else {},
        }

    def _gather(self) -> None:
        """Begins the sums of a rollout."""
        self._finished: list[Any] = []
        self._legal = self._zero_time = self._decisions = 0

    def _on_training_start(self) -> None:
        self._done, self._lap, self._cpu_lap = self.num_timesteps, time.perf_counter(), time.process_time()
        self._bar = self.progress.add_task(
            "", total=self.cfg.total_timesteps, completed=self.num_timesteps, score="–", fps="–", validation="–"
        )
        self._check_masks(self.training_env.action_masks())  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ within a rollout
    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self._done:
            self._between(last=False)
        self._gather()
        env: Any = self.training_env
        env.expose(exposure_after(self.cfg, self.num_timesteps))
        self.model.ent_coef = ent_coef_after(self.cfg, self.num_timesteps)  # type: ignore[attr-defined]
        if self.curriculum is not None:
            self.curriculum.begin_rollout(env)
        self._learning = time.perf_counter()

    def _on_step(self) -> bool:
        dones, obs, masks = self.locals["dones"], self.locals["new_obs"], self.training_env.action_masks()  # type: ignore[attr-defined]
        if dones.any():
            self._finished += [info["score"] for info in self.locals["infos"] if info]
        if not np.isfinite(self.locals["rewards"]).all():
            raise self._not_finite("a reward", "the level or the environment is at fault")
        self._check_masks(masks)
        if self.curriculum is not None:
            self.curriculum.step(self.training_env)  # type: ignore[arg-type]
        self._legal += int(np.count_nonzero(masks))
        self._zero_time += int(np.count_nonzero(obs[:, ACTIONS_SINCE_CLOCK]))
        self._decisions += len(dones)
        return True

    def _check_masks(self, masks: np.ndarray) -> None:
        some = masks.view(np.uint64).any(axis=1)  # eight flags at a time
        if not some.all():
            raise ExperimentError(
                f"environment {int(np.argmin(some))} offers no legal action after {self.model.num_timesteps:,} frames: its "
                f"action mask is empty; a level's rules must always leave one, such as `wait`"
            )

    def _on_rollout_end(self) -> None:
        """The scores of the episodes that ended in this rollout, and the progress bar."""
        now = time.perf_counter()
        self._rollout_seconds, self._learning = now - self._learning, now
        self.logger.record("time/rollout_seconds", self._rollout_seconds)
        if self._finished:
            episodes = np.array(self._finished, EPISODE)
            for name, value in means(episodes).items():
                self.logger.record(f"episode/{name}", value)
            self.logger.record("episode/finished", len(episodes))
            self._recent.extend(episodes["total"].tolist())
        if self.curriculum is not None:
            for name, value in self.curriculum.end_rollout(self.model.rollout_buffer.advantages).items():  # type: ignore[attr-defined]
                self.logger.record(f"curriculum/{name}", value)
        self.logger.record("decisions/legal_actions", self._legal / self._decisions)
        self.logger.record("decisions/legal_share", self._legal / self._decisions / layout.N_ACTIONS)
        jumps = self._decisions - self._zero_time
        self.logger.record("decisions/zero_time_per_clock_jump", self._zero_time / max(1, jumps))
        if self._bar is not None:
            score = f"{np.mean(self._recent):.3f}" if self._recent else "–"
            self.progress.update(self._bar, completed=self.num_timesteps, score=score)

    # ------------------------------------------------------------------ between two rollouts
    def _on_training_end(self) -> None:
        if self.num_timesteps > self._done:
            self._between(last=True)

    def _between(self, last: bool) -> None:
        """After an update: checks, a look when one is due, the row of this rollout, a checkpoint when one is due."""
        updated = time.perf_counter()
        self._check_learner()
        rollout = self.num_timesteps // (self.cfg.n_envs * self.cfg.n_steps)
        every = self.cfg.evaluation.every
        look = self.look() if last or (every and rollout % every == 0) else None
        if look is not None and not last:
            self.stopped = self.examiner.verdict()
        if self.curriculum is not None:
            for name, value in self.curriculum.go_on(self.training_env, self.num_timesteps).items():  # type: ignore[arg-type]
                self.logger.record(f"curriculum/{name}", value)
        looked = time.perf_counter() if look else updated
        self._log_times(update=updated - self._learning, look=looked - updated)
        self.logger.dump(self.num_timesteps)
        self.rows.send()
        self._done = self.num_timesteps
        interrupt = self.interrupts.noted
        if last or self.stopped or interrupt or rollout % self.cfg.checkpoint.every == 0:
            self.save()
        if look is not None and self.on_look is not None:
            self.on_look(look)
        if interrupt:
            raise Interrupted(interrupt)
        if self.stopped:
            raise Ended

    def _check_learner(self) -> None:
        """Refuses to go on, or to save, with a loss or a weight that is not finite."""
        record = self.logger.name_to_value
        if "train/entropy_loss" in record:
            self.logger.record("train/entropy", -record["train/entropy_loss"])
        for key, value in record.items():
            if key.startswith("train/") and key.endswith("loss") and not math.isfinite(value):
                raise self._not_finite(f"`{key}`")
        for name, weights in self.model.policy.named_parameters():
            if not torch.isfinite(weights).all():
                raise self._not_finite(f"the weight `{name}`")

    def _not_finite(self, what: str, advice: str = "a smaller `learning_rate` may help") -> FloatingPointError:
        return FloatingPointError(f"{what} is not finite after {self.model.num_timesteps:,} frames ({advice})")

    def _log_times(self, update: float, look: float) -> None:
        """Speed, and where the time since the last row went; what is left of it are logging and checkpoints."""
        now, cpu = time.perf_counter(), time.process_time()
        lap, self._lap = now - self._lap, now
        self.seconds += lap
        self.cpu_seconds += cpu - self._cpu_lap
        self._cpu_lap = cpu
        fps = (self.num_timesteps - self._done) / lap
        self.logger.record("time/update_seconds", update)
        self.logger.record("time/look_seconds", look)
        for name, seconds in {"rollout": self._rollout_seconds, "update": update, "look": look}.items():
            self.logger.record(f"time/{name}_share", seconds / lap)
        self.logger.record("time/frames_per_second", fps)
        self.logger.record("time/seconds", self.seconds)
        if self._bar is not None:
            self.progress.update(self._bar, fps=f"{fps:,.0f}")

    def look(self) -> Look:
        """One look at the validation score, told to the logger, the bar and, without a terminal, as a line."""
        look, found = self.examiner.look(self.model)
        for name, value in found.items():
            self.logger.record(f"validation/{name}", value)
        if look is self.examiner.best:
            checkpoints.write_bytes(self.folder / BEST, checkpoints.model_bytes(self.model))
        if self._bar is not None:
            self.progress.update(self._bar, validation=look.brief())
        if self.progress.disable:
            rate = (look.frames - self._done) / (time.perf_counter() - self._lap)
            print(f"{look.frames:>10,} frames  {rate:>8,.0f}/s  {look.words()}", flush=True)
        return look

    def save(self) -> None:
        """The rows, then the checkpoint, each atomically: the rows may know more than the checkpoint, never less."""
        self.rows.save()
        checkpoints.save(self.folder / CHECKPOINT, self.model, self.training_env, self.memory())  # type: ignore[arg-type]

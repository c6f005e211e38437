"""Where the numbers of a training go: `metrics.csv`, TensorBoard, Weights & Biases, the progress bar.

Everything here can go on where an earlier process of the same run stopped, without a row or a point twice.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.logger import KVWriter, Logger

from experiments.config import TrainConfig
from experiments.errors import ExperimentError
from experiments.files import write_text

METRICS = "metrics.csv"
WANDB_SECONDS = 30.0  # how long W&B may keep a training waiting, at its start and at its end
_files = itertools.count()


def _numbers(key_values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in key_values.items() if isinstance(value, (int, float, np.number))}


class Rows(KVWriter):
    """Every logged value as one row per number of frames: for `metrics.csv`, the learning curve and W&B.

    Args:
        path: the CSV file.
        wandb_run: where `send` sends to, or None.
        frames: rows up to this number of frames are taken over from the file; 0: none, even if there is one.

    Raises:
        ExperimentError: the rows to take over cannot be read.
    """

    def __init__(self, path: Path, wandb_run: Any = None, frames: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = self._read(frames) if frames else []
        self._wandb = wandb_run
        self._sent = len(self.rows)

    def _read(self, frames: int) -> list[dict[str, float]]:
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                found = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            rows = [row | {"frames": int(row["frames"])} for row in found if row["frames"] <= frames]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            rows = []
        if not rows or rows[-1]["frames"] != frames:
            raise ExperimentError(f"{self.path}: is broken, it has no row of {frames:,} frames; train the run anew")
        return rows

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds the values to the row of `step`."""
        if not self.rows or self.rows[-1]["frames"] != step:
            self.rows.append({"frames": step})
        self.rows[-1].update(_numbers(key_values))

    def send(self) -> None:
        """Rows that are complete go to W&B, each once."""
        if self._wandb is not None:
            for row in self.rows[self._sent :]:
                self._wandb.log(row, step=int(row["frames"]), commit=True)
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
        """Nothing is held open."""


class TensorBoard(KVWriter):
    """Scalars as TensorBoard event files, one event per call, written at once: a full disk is the caller's OSError.

    stable-baselines3's own writer leaves that error, with a traceback, to a thread. Where a run is resumed after `frames`
    frames, points beyond them that an earlier process has written are hidden.
    """

    def __init__(self, folder: Path, frames: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._file = open(folder / name, "wb", buffering=0)  # noqa: SIM115
        self._records, self._event = RecordWriter(self._file), Event
        self._add(file_version="brain.Event:2")
        if frames is not None:
            self._add(step=frames + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds one point per number, except those that are excluded from `tensorboard`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = _numbers({k: v for k, v in key_values.items() if "tensorboard" not in (key_excluded[k] or ())})
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        self._add(step=step, summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def make_logger(cfg: TrainConfig, folder: Path, rows: Rows, frames: int | None) -> Logger:
    """stable-baselines3's logger with our writers: rows always, and TensorBoard if wanted (`frames`: see there)."""
    writers: list[KVWriter] = [rows]
    if cfg.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", frames))
    return Logger(str(folder), writers)


def start_wandb(cfg: TrainConfig, folder: Path, config: dict[str, Any], run_id: str) -> Any:
    """A W&B run, or None if it is disabled (then the package is not even imported).

    The same `run_id` goes on with the same run. If W&B cannot be reached or knows no account, one line says so and the
    run is recorded offline.
    """
    if cfg.wandb.mode == "disabled":
        return None
    import wandb

    def start(mode: Any) -> Any:
        patience = WANDB_SECONDS if mode == "online" else 0.0  # 0: without end, at the end of a run
        return wandb.init(
            project=cfg.wandb.project,
            mode=mode,
            dir=str(folder),
            name=folder.name,
            group=folder.parent.name,
            config=config,
            id=run_id,
            resume="allow" if mode == "online" else None,
            sync_tensorboard=False,
            settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_SECONDS, finish_timeout=patience),
        )

    if cfg.wandb.mode == "online":
        try:
            return start("online")
        except wandb.Error as error:
            print(
                f"W&B is not reachable ({str(error).splitlines()[0]}): the run is recorded offline; "
                f"`wandb sync {folder}/wandb/offline-*` sends it later",
                file=sys.stderr,
            )
            wandb.teardown()  # its service still holds the run's name
    return start("offline")


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

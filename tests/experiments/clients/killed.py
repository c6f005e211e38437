"""Trains in child processes that are killed at chosen points, as `kill -9` does: `... killed FOLDER POINT ...`.

Once with each algorithm A and for each point P; the run folder is FOLDER/A/P.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import callbacks, checkpoints, run_folder
from experiments.config import CHOICES
from experiments.train import train
from fq_env.sb3 import FunctionQuestVecEnv, make_sb3_env
from tests.experiments.training import config


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner: Any, name: str, call: int, do: Callable[..., None] = die, when: Callable[..., bool] = lambda *_: True) -> None:
    """Before that call of `owner.name` (of those `when` counts) `do` is called with its arguments."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += when(*arguments)
        if calls == call and when(*arguments):
            do(*arguments)
        return original(*arguments, **named)

    setattr(owner, name, counted)


def half(temporary: Path, data: bytes) -> None:
    """Half of a file is on the disk."""
    with open(temporary, "wb") as file:
        file.write(data[: len(data) // 2])
    die()


def checkpoint(*arguments: Any) -> bool:
    return any("checkpoint" in Path(a).name for a in arguments if isinstance(a, str | Path))


POINTS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: at(FunctionQuestVecEnv, "step_wait", 2 * 16 + 5),
    "in a rollout": lambda: at(FunctionQuestVecEnv, "step_wait", 5 * 16 + 7),
    "before an update": lambda: at(callbacks.Overseer, "_on_rollout_end", 5),
    "after a look, before its checkpoint": lambda: at(checkpoints, "save", 2),
    "half of a checkpoint written": lambda: at(Path, "write_bytes", 2, half, checkpoint),
    "a checkpoint not yet renamed": lambda: at(os, "replace", 2, die, checkpoint),
    "after the last checkpoint": lambda: at(run_folder, "save_curve", 1),
}


def main(base: Path, points: list[str]) -> None:
    make_sb3_env(1, 1)  # loads the kernels, once for all children
    for algo, point in itertools.product(CHOICES["algo"], points):
        child = os.fork()
        if not child:
            POINTS[point]()
            train(config(f"algo={algo}", f"folder='{base / str(algo) / point}'"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"{algo}, {point}: the child was not killed, its status is {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

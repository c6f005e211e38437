"""What a step costs when the workflow grows: a level's layered workflows with more and more tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.benchmark.environments import SEED, random_legal, replay
from experiments.benchmark.race import Contestant, race, ranged, spread
from experiments.errors import ExperimentError

BASE = 11  # the level whose system and draws the workflows have: models, memory, two variants, failures
N = 64
RESETS = 5
MOST_STEPS = 50  # of an episode, per task


def layered(tasks: int) -> Any:
    """The base level with layered workflows of exactly so many tasks."""
    from fq_env.level import load_level

    level = load_level(BASE)
    if level.workflow is None:
        raise ExperimentError(f"level {BASE} has no workflow whose size could be changed; it must be one of open order")
    workflow = level.workflow.model_copy(update={"shapes": {"layered": 1.0}, "tasks": (tasks, tasks)})
    return level.model_copy(update={"workflow": workflow, "max_steps": MOST_STEPS * tasks})


def contestants_of(tasks: int) -> tuple[list[Contestant], dict[str, float]]:
    """Steps of about one whole episode per environment, and resets alone; steps per episode, bytes per environment."""
    from fq_env.engine import Engine

    engine = Engine(layered(tasks), N, autoreset="same_step", seed=SEED)
    engine.reset()
    rng, rows, ended = np.random.default_rng(SEED), list[np.ndarray](), 0
    while ended < N:
        rows.append(random_legal(engine.masks, rng.random(N)))
        ended += engine.step(rows[-1])
    steps = replay(f"{tasks} tasks", engine, np.stack(rows), engine.obs.copy())
    fresh = Engine(layered(tasks), N, seed=SEED)

    def reset() -> None:
        fresh.seed(SEED)
        for _ in range(RESETS):
            fresh.reset()

    facts = {"steps_per_episode": len(rows) * N / ended, "bytes_per_environment": float(engine.block.stride)}
    return [steps, Contestant("reset", RESETS * N, reset)], facts


def tasks_table(cfg: Any) -> dict[str, Any]:
    """Nanoseconds per step and per reset against the number of tasks."""
    built = {tasks: contestants_of(tasks) for tasks in cfg.tasks}
    times = race([c for contestants, _ in built.values() for c in contestants], cfg.rounds)
    print(
        f"\nA step against the number of tasks: layered workflows, system of level {BASE}, n = {N}, whole episodes, one thread"
    )
    names = ("ns a step, resets included", "over the first", "us a reset")
    print(f"  tasks {names[0]:>30} {names[1]:>20} {names[2]:>24}   steps an episode   kB each")
    table: dict[str, Any] = {}
    for k, (tasks, (_, facts)) in enumerate(built.items()):
        step, reset = spread(times[:, 2 * k]), spread(times[:, 2 * k + 1] / 1e3)
        ratio = spread(times[:, 2 * k] / times[:, 0])
        table[str(tasks)] = {"ns_per_step": step, "over_first": ratio, "reset_us": reset, **facts}
        print(
            f"  {tasks:>5} {ranged(step):>30} {ranged(ratio, 2):>20} {ranged(reset, 1):>24}"
            f" {facts['steps_per_episode']:>18,.0f} {facts['bytes_per_environment'] / 1e3:>9,.0f}"
        )
    return table

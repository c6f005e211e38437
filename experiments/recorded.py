"""Players on recorded workflows: makespan over the lower bound, per file and as geometric mean.

`python -m experiments.recorded folder=DIR` reads every WfFormat file of a folder. Beside the players stand two plain list
schedules that know no slots: `list: rank` starts what has the longest way to the end, `list: order` what became ready first,
in the file's order where several did at once (the rule `fifo` takes the longest way among those).
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from experiments import cli
from experiments.errors import ExperimentError
from experiments.files import check_out, write_json

if TYPE_CHECKING:
    from fq_env.level import Level

DURATIONS = ("known", "estimated")
LISTS = ("list: rank", "list: order")
Task = tuple[str, float, list[int]]  # function, seconds, inputs


@dataclass
class RecordedConfig:
    """Keys of the command; explained in `configs/recorded.yaml`."""

    folder: str = MISSING
    workers: int = MISSING
    durations: list[str] = MISSING
    players: list[str] = MISSING
    n: int = MISSING
    out: str | None = MISSING


def list_schedule(tasks: Sequence[Task], workers: int, by_rank: bool) -> float:
    """Makespan over the lower bound of a list schedule without idling; tasks stand in topological order."""
    followers: list[list[int]] = [[] for _ in tasks]
    for i, (_, _, inputs) in enumerate(tasks):
        for j in inputs:
            followers[j].append(i)
    rank = [seconds for _, seconds, _ in tasks]
    for i in range(len(tasks) - 1, -1, -1):
        rank[i] += max((rank[j] for j in followers[i]), default=0.0)
    left = [len(inputs) for _, _, inputs in tasks]
    ready = [(-rank[i] if by_rank else 0.0, i) for i, n in enumerate(left) if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, i = heapq.heappop(ready)
            heapq.heappush(running, (now + tasks[i][1], i))
        now = running[0][0]
        while running and running[0][0] == now:
            for j in followers[heapq.heappop(running)[1]]:
                left[j] -= 1
                if left[j] == 0:
                    heapq.heappush(ready, (-rank[j] if by_rank else now, j))
    return now / max(max(rank), math.fsum(seconds for _, seconds, _ in tasks) / workers)


def geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def ratio(level: Level, player: str, n: int) -> float:
    """Geometric mean of makespan over lower bound; n instances where something is drawn."""
    from fq_env.players import play

    drawn = player == "random" or level.draw.belief_cv > 0
    episodes = play(level, player, split="test", n=n if drawn else 1)
    return geometric((episodes["makespan"] / episodes["lb"]).tolist())


def check(cfg: RecordedConfig) -> list[Path]:
    """The files, in order of their names. Raises ExperimentError."""
    from fq_env.players import PLAYERS
    from pit.layout import MAX_PLACES

    for key, known in (("durations", DURATIONS), ("players", tuple(PLAYERS))):
        if not getattr(cfg, key) or not set(getattr(cfg, key)) <= set(known):
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be a list of {', '.join(known)}")
    for key, high in (("workers", MAX_PLACES), ("n", 65_536)):
        if not 1 <= getattr(cfg, key) <= high:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must lie between 1 and {high}")
    check_out(cfg.out)
    files = [path for path in sorted(Path(cfg.folder).glob("*.json")) if path.name != "INDEX.json"]
    if not files:
        raise ExperimentError(f"folder={cfg.folder}: holds no WfFormat file (*.json); name a folder that does")
    return files


def table(durations: str, players: Sequence[str], rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per file, the geometric means last."""
    columns = [*players, *LISTS]
    lines = [
        f"Durations {durations}: makespan over lower bound\n",
        f"| workflow | tasks | edges | functions | {' | '.join(columns)} |",
        f"|---|{'---|' * (3 + len(columns))}",
    ]
    for name, row in rows.items():
        figures = " | ".join(f"{row[column]:.3f}" for column in columns)
        lines.append(f"| {name} | {row['tasks']} | {row['edges']} | {row['functions']} | {figures} |")
    means = " | ".join(f"**{geometric([row[column] for row in rows.values()]):.3f}**" for column in columns)
    return "\n".join([*lines, f"| **geometric mean of {len(rows)}** | | | | {means} |"])


def recorded(cfg: RecordedConfig) -> dict[str, Any]:
    """The command: plays, prints and, if asked, writes the figures, durations -> file -> player -> ratio."""
    from fq_env.importers import wfformat
    from fq_env.level import recorded_level

    figures: dict[str, Any] = {}
    files = check(cfg)
    for durations in cfg.durations:
        rows: dict[str, dict[str, Any]] = {}
        for path in files:
            level = recorded_level(path, durations, cfg.workers)
            tasks = wfformat.read(path).tasks
            functions = len(level.system.functions)
            row: dict[str, Any] = {"tasks": level.max_tasks, "edges": level.max_edges, "functions": functions}
            row |= {player: ratio(level, player, cfg.n) for player in cfg.players}
            row |= {name: list_schedule(tasks, cfg.workers, name == LISTS[0]) for name in LISTS}
            rows[path.stem] = row
        figures[durations] = rows
        print(f"\n{table(durations, cfg.players, rows)}")
    if cfg.out is not None:
        write_json(Path(cfg.out), figures)
        print(f"\nwritten: {cfg.out}")
    return figures


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(lambda: recorded(cli.read("recorded", RecordedConfig, sys.argv[1:], __doc__ or "")), RecordedConfig)


if __name__ == "__main__":
    main()

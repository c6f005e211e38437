"""Watch one instance being played in the terminal: `python -m experiments.watch level=11`.

Plays with the bundle that is kept for the level, with another (`bundle=DIR`), or with a rule (`player=fifo`), and prints the
score at the end; `gif=FILE` and `png=FILE` write it as pictures.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.config import folder_of, for_runtime, title_of
from experiments.errors import ExperimentError
from experiments.evaluate import SPLITS, Referee, greedy, level_for, open_policies, seated
from pit import layout

if TYPE_CHECKING:
    from fq_env.engine import Engine
    from fq_env.level import Level

WATCHING = "view to watch"
HOME, TO_END_OF_LINE, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"  # of a terminal: a frame is drawn over the one before
INDENT = " " * 8  # of what a line goes on with; its first word takes so much
# Answers the next action of the engine's one environment.
Choose = Callable[["Engine"], int]


@dataclass
class WatchConfig:
    """Keys of the command; explained in `configs/watch.yaml`."""

    level: Any = MISSING
    bundle: str | None = MISSING
    player: str | None = MISSING
    split: str = MISSING
    instance: int = MISSING
    fit: int = MISSING
    pause: float = MISSING
    gif: str | None = MISSING
    png: str | None = MISSING
    bundles: str = MISSING


def rule_player(name: str, level: Level, fit: int) -> Choose:
    """A player that is not trained, one action at a time. Raises ExperimentError for an unknown one."""
    player = seated(name, Referee(level, fit))
    return lambda engine: int(engine.advise(player)[0])


def contestant(cfg: WatchConfig) -> tuple[str, Level, str, Choose]:
    """Who plays, which level, under which exposure, and how. Raises ExperimentError."""
    if cfg.player is not None:
        if cfg.bundle is not None:
            raise ExperimentError(f"bundle={cfg.bundle} player={cfg.player}: only one can play; leave one out")
        level = for_runtime(level_for(cfg.level if cfg.level is not None else 11, []), WATCHING)
        return cfg.player, level, level.exposure, rule_player(cfg.player, level, cfg.fit)
    path = cfg.bundle
    if path is None:
        word = cfg.level if cfg.level is not None else 11
        path = str(Path(cfg.bundles) / folder_of(word))
        if not Path(path).is_dir():
            trained = Path("runs") / f"level-{title_of(word)}" / "latest" / "bundle"
            one = f"bundle={shlex.quote(str(trained))}, which is there" if trained.is_dir() else "bundle=DIR"
            raise ExperimentError(
                f"{path}: no bundle is kept for level {word}; name one by {one}, a rule by player=critical_path, or "
                f"train one: python -m experiments.train level={shlex.quote(str(word))}"
            )
    policies = open_policies("bundle", path)
    if len(policies) != 1:
        raise ExperimentError(f"bundle={path}: names {len(policies)} policies; one can play")
    (policy,) = policies
    level = for_runtime(level_for(cfg.level, policies), WATCHING)

    def choose(engine: Engine) -> int:
        return int(greedy(policy.logits(engine.obs), engine.masks)[0])

    return str(policy.path), level, policy.exposure, choose


def check(cfg: WatchConfig) -> None:
    """Refuses what cannot be shown, before anything is played. Raises ExperimentError."""
    if cfg.split not in SPLITS:
        raise ExperimentError(f"split={cfg.split}: must be one of {', '.join(SPLITS)}")
    for key, low in (("instance", 0), ("pause", 0), ("fit", 1)):
        if not getattr(cfg, key) >= low:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be at least {low}")
    for key in ("gif", "png"):
        file = getattr(cfg, key)
        if file is not None and (Path(file).suffix != f".{key}" or not Path(file).absolute().parent.is_dir()):
            raise ExperimentError(f"{key}={file}: must be a file NAME.{key} in a folder that exists")


def show(text: str, pause: float) -> None:
    """One frame: over the last one in a terminal, whose width it keeps; after it elsewhere, where nothing waits."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        rows = [row for line in text.split("\n") for row in textwrap.wrap(line, width, subsequent_indent=INDENT) or [""]]
        lines = "".join(f"{row}{TO_END_OF_LINE}\n" for row in rows)
        print(f"{HOME}{lines}{BELOW}", end="", flush=True)
        time.sleep(pause)
    else:
        print(f"{text}\n")


def watch(cfg: WatchConfig) -> dict[str, Any]:
    """The command: plays, shows, and writes the pictures that are asked for; the episode's score and its parts."""
    from fq_env.engine import Engine
    from fq_env.picture import render_picture
    from fq_env.play import actions
    from fq_env.render import render_text

    check(cfg)
    name, level, exposure, choose = contestant(cfg)
    engine = Engine(level, 1, exposure=exposure, autoreset="disabled")
    engine.reset(split=cfg.split, instances=cfg.instance)
    title = f"level {level.number}, {level.name} | {cfg.split} instance {cfg.instance} | {name}"
    pictures, steps, ended = [], 0, False
    last: dict[str, Any] | None = None
    while True:
        view = engine.pit_view(0) | {"last": last}  # the state alone does not always tell which task was begun
        if cfg.gif is not None:
            pictures.append(render_picture(view))
        if ended:
            break
        words = dict(actions(view, engine.masks[0]))  # before the choice: who looks ahead overwrites the masks
        action = choose(engine)
        last = taken(view, action)
        steps += 1
        show(f"{title}\n\n{render_text(view)}\n\nstep {steps}: {words[action]}", cfg.pause)
        ended = bool(engine.step_one(action))
    show(f"{title}\n\n{render_text(view)}\n", 0.0)
    print("\n".join(result(name, level, cfg, view["episode"])))
    write_pictures(cfg, pictures, view)
    episode: dict[str, Any] = view["episode"]
    return episode


def taken(view: dict[str, Any], action: int) -> dict[str, Any]:
    """An action as the next view's `last`: its verb, and the task that it is about."""
    if action >= layout.WAIT:
        return {"verb": layout.GLOBAL_ACTIONS[action - layout.WAIT], "task": None}
    slot, verb = divmod(action, layout.N_VERBS)
    return {"verb": layout.VERBS[verb], "task": view["slots"][slot]["head"]}


def result(name: str, level: Level, cfg: WatchConfig, episode: dict[str, Any]) -> list[str]:
    """The score with its parts beside the critical-path rule's on the same instance, and the optimum where it is proven."""
    names = ["critical_path", statistics.EXACT]
    others = Referee(level, cfg.fit).players(cfg.split, 1, cfg.instance, names)
    columns = [(name if len(name) <= 24 else f"…{name[-23:]}", episode), ("critical_path", others["critical_path"][0])]
    best = statistics.EXACT in others
    lines = [f"{'':12}" + "".join(f"{who:>26}" for who, _ in columns) + (f"{'best possible':>16}" if best else "")]
    for key in ("total", *statistics.PARTS, "makespan"):
        unit, digits = (" s", 1) if key == "makespan" else ("", 3)
        lines.append(f"{key:12}" + "".join(f"{f'{row[key]:.{digits}f}{unit}':>26}" for _, row in columns))
    if best:
        lines[1] += f"{others[statistics.EXACT][0]['total']:16.3f}"
    return lines


def write_pictures(cfg: WatchConfig, pictures: list[np.ndarray], view: dict[str, Any]) -> None:
    """The files that are asked for: the whole episode as GIF, its last state as PNG."""
    from experiments import figures
    from fq_env.picture import render_picture

    if cfg.gif is not None:
        print(f"written: {figures.animation(Path(cfg.gif), pictures, cfg.pause)}")
    if cfg.png is not None:
        print(f"written: {figures.picture(Path(cfg.png), render_picture(view))}")


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(lambda: watch(cli.read("watch", WatchConfig, sys.argv[1:], __doc__ or "")), WatchConfig)


if __name__ == "__main__":
    main()

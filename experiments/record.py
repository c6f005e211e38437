"""Record decisions as a Parquet table: `python -m experiments.record level=11 player=critical_path out=FILE.parquet`.

One row a decision: the state of the Pit before and after, what it did, what that took; the columns stand in `pit/record.py`.
Read it back with `pyarrow.parquet.read_table(FILE)`. A rule plays (`player=`), or a trained policy (`run=`, `bundle=`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import MISSING

from experiments import cli
from experiments.config import for_runtime
from experiments.errors import ExperimentError
from experiments.evaluate import SPLITS, WARM_WAIT, Referee, greedy, level_for, open_policies
from experiments.files import check_out

if TYPE_CHECKING:
    from fq_env.engine import Engine
    from fq_env.level import Level
    from fq_env.recorder import Choose

RECORDING = "recorder"


@dataclass
class RecordConfig:
    """Keys of the command; explained in `configs/record.yaml`."""

    level: Any = MISSING
    player: str | None = MISSING
    run: str | None = MISSING
    bundle: str | None = MISSING
    split: str = MISSING
    n: int = MISSING
    first: int = MISSING
    fit: int = MISSING
    observations: bool = MISSING
    out: str | None = MISSING


class Contestant(NamedTuple):
    """Who plays which level under which exposure; `choose` makes the chooser of an instance; `by` is the table's column."""

    name: str
    by: str
    level: Level
    exposure: str
    choose: Callable[[int], Choose]


def rule(name: str, level: Level, fit: int) -> Contestant:
    """A player of `fq_env.players`, under the level's own exposure. Raises ExperimentError."""
    from fq_env.players import PLAYERS, as_player
    from fq_env.recorder import chooser

    if name not in PLAYERS:
        raise ExperimentError(f"player={name}: must be one of {', '.join(PLAYERS)}")
    player = as_player(name, **(Referee(level, fit).fitted if name == WARM_WAIT else {}))
    by = "random" if name == "random" else "rule"
    return Contestant(name, by, level, level.exposure, lambda instance: chooser(player, instance))


def contestant(cfg: RecordConfig) -> Contestant:
    """The one that `player=`, `run=` or `bundle=` names. Raises ExperimentError."""
    given = {key: value for key in ("player", "run", "bundle") if (value := getattr(cfg, key)) is not None}
    if len(given) != 1:
        words = " ".join(f"{key}={value}" for key, value in given.items()) or "player=null run=null bundle=null"
        raise ExperimentError(f"{words}: exactly one plays; for example player=critical_path")
    ((key, name),) = given.items()
    if key == "player":
        return rule(name, for_runtime(level_for(cfg.level, []), RECORDING), cfg.fit)
    policies = open_policies(key, name)
    if len(policies) != 1:
        raise ExperimentError(f"{key}={name}: names {len(policies)} policies; one can play")
    (policy,) = policies

    def choose(engine: Engine) -> int:
        return int(greedy(policy.logits(engine.obs), engine.masks)[0])

    level = for_runtime(level_for(cfg.level, policies), RECORDING)
    return Contestant(str(policy.path), "policy", level, policy.exposure, lambda i: choose)


def check(cfg: RecordConfig) -> str:
    """Refuses what cannot be recorded, before anything is played; the file. Raises ExperimentError."""
    if cfg.split not in SPLITS:
        raise ExperimentError(f"split={cfg.split}: must be one of {', '.join(SPLITS)}")
    for key, low in (("n", 1), ("first", 0), ("fit", 1)):
        if not getattr(cfg, key) >= low:
            raise ExperimentError(f"{key}={getattr(cfg, key)}: must be at least {low}")
    if cfg.out is None:
        raise ExperimentError("out=null: name the file to write, for example out=decisions.parquet")
    if Path(cfg.out).suffix != ".parquet":
        raise ExperimentError(f"out={cfg.out}: a Parquet file is written; name it {Path(cfg.out).with_suffix('.parquet')}")
    check_out(cfg.out)
    return cfg.out


def rows(who: Contestant, cfg: RecordConfig) -> Iterator[dict[str, Any]]:
    """The rows of all decisions, instance by instance, as they are played."""
    from fq_env.engine import Engine
    from fq_env.recorder import record_episode

    engine = Engine(who.level, 1, exposure=who.exposure, autoreset="disabled")
    for instance in range(cfg.first, cfg.first + cfg.n):
        engine.reset(split=cfg.split, instances=instance)
        yield from record_episode(engine, who.choose(instance), player=who.name, by=who.by)


def record(cfg: RecordConfig) -> int:
    """The command: plays and writes; how many decisions there are."""
    from pit import record as table

    out = check(cfg)
    table.arrow_schema()  # pyarrow is missed before anything is played
    who = contestant(cfg)
    count = table.write(Path(out), rows(who, cfg), cfg.observations)
    print(f"written: {out}, {count} decisions in {cfg.n} episodes of {who.name} on level {who.level.number}, {who.level.name}")
    return count


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(lambda: record(cli.read("record", RecordConfig, sys.argv[1:], __doc__ or "")), RecordConfig)


if __name__ == "__main__":
    main()

"""Held-out scores: trained policies and players on the same instances of a split.

As a command: `python -m experiments.evaluate runs=RUN bundles=[DIR,...] level=11`; runs of the same configuration that differ
in their seed are one method with several training seeds. As a library: `play_policy`, `Referee`, `open_policies`.
"""

from __future__ import annotations

import functools
import glob
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.files import check_out_folder, write_folder, write_json, write_text
from pit.layout import N_ACTIONS

if TYPE_CHECKING:
    from fq_env.engine import Player
    from fq_env.level import Level

CHUNK = 512  # environments of one evaluation block: more would leave the cache
SPLITS = ("train", "validation", "test")
WARM_WAIT, CALIBRATED, LOOKAHEAD = "critical_path_warm_wait", "calibrated", "lookahead"
# Logits (k, 128) of observations (k, 512) float32.
Logits = Callable[[np.ndarray], np.ndarray]
# Called with the observations, masks and actions of each batched decision.
Watch = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def greedy(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The legal action of the largest logit, (k,) int64; the smallest index of equals, as the conductor chooses."""
    return np.where(masks, logits, -np.inf).argmax(axis=1)


def play_policy(
    logits: Logits,
    level: Level,
    *,
    split: str,
    n: int,
    first: int = 0,
    exposure: str | None = None,
    watch: Watch | None = None,
) -> np.ndarray:
    """Plays the instances `first`..`first + n - 1` of `split` greedily; their episode records (n,) in that order."""
    from fq_env.engine import make_engine

    blocks = []
    for start in range(first, first + n, CHUNK):
        size = min(CHUNK, first + n - start)
        engine = make_engine(level, size, exposure=exposure, autoreset="disabled")
        engine.reset(split=split, instances=range(start, start + size))
        actions = np.zeros(size, np.int64)
        live = np.arange(size)
        while live.size:
            obs, masks = engine.obs[live], engine.masks[live]
            actions[live] = greedy(logits(obs), masks)
            if watch is not None:
                watch(obs, masks, actions[live])
            engine.step(actions)
            live = live[~(engine.terminated | engine.truncated)[live]]
        blocks.append(engine.episodes.copy())
    return np.concatenate(blocks)


def first_legal(level: Level, *, split: str, n: int) -> np.ndarray:
    """Plays as `play_policy`, always the first legal action; episode records (n,)."""
    return play_policy(lambda obs: np.zeros((len(obs), N_ACTIONS)), level, split=split, n=n)


# --------------------------------------------------------------------------- players
@dataclass
class Referee:
    """Plays the players on a level's instances.

    `fit` training instances serve to fit the rule's threshold, once; validation and test instances never do.
    """

    level: Level
    fit: int = MISSING

    @functools.cached_property
    def fitted(self) -> dict[str, Any]:
        """The parameters of `critical_path_warm_wait`, fitted on training instances."""
        from fq_env.players import fit_warm_wait

        return dict(fit_warm_wait(self.level, split="train", n=self.fit))

    rollouts: int = 12

    def plain(self) -> list[str]:
        """The players that play a thousand instances in a second."""
        return [name for name in PLAYERS if name not in (LOOKAHEAD, statistics.EXACT)]

    def players(
        self, split: str, n: int, first: int = 0, names: Collection[str] | None = None, rollouts: int = 12
    ) -> dict[str, np.ndarray]:
        """Name -> episode records (n,) of the players (all but lookahead, or those named), in the order of `PLAYERS`.

        `exact_best` (totals only) is left out where no optimum is proven, `calibrated` where none is fitted. Lookahead takes
        a thousand times as long as a rule, so it plays only where it is asked for.
        """
        self.rollouts = rollouts
        names = [name for name in PLAYERS if name != LOOKAHEAD] if names is None else names
        played = {name: player(self, split, n, first) for name, player in PLAYERS.items() if name in names}
        return {name: episodes for name, episodes in played.items() if episodes is not None}


def seated(name: str, referee: Referee) -> Player:
    """A player by name, its numbers fitted on training instances. Raises ExperimentError."""
    from fq_env.players import PLAYERS as RULES
    from fq_env.players import lookahead

    if name == WARM_WAIT:
        return RULES[name]._replace(**referee.fitted)
    if name in RULES:
        return RULES[name]
    linear = linear_rule(referee.level)
    if name == CALIBRATED and linear is not None:
        return linear
    if name == LOOKAHEAD and referee.level.order is None:
        return lookahead(linear or seated(WARM_WAIT, referee), referee.rollouts)
    number, hidden = referee.level.number, referee.level.order is not None
    if name == CALIBRATED and not hidden:
        raise ExperimentError(
            f"player={name}: no rule is fitted for level {number or referee.level.name} as it is; "
            f"`python -m experiments.calibrate levels={number if referee.level.of_suite else 'FILE'}` fits one"
        )
    here = [other for other in PLAYERS if other in RULES or (other in (CALIBRATED, LOOKAHEAD) and not hidden)]
    where = " where the order is hidden" if hidden else ""
    raise ExperimentError(f"player={name}: must be one of {', '.join(here)}{where}")


def linear_rule(level: Level) -> Player | None:
    """The fitted rule of a level as a player; None if there is none."""
    from experiments.calibrate import fitted_weights
    from fq_env.players import calibrated
    from pit.rules import weights_of

    table = fitted_weights(level)
    return None if table is None else calibrated(weights_of(table))


Contestant = Callable[[Referee, str, int, int], np.ndarray | None]


def rule(name: str) -> Contestant:
    """A player of `seated`; None where the level has none."""

    def contestant(referee: Referee, split: str, n: int, first: int) -> np.ndarray | None:
        from fq_env.players import play

        try:
            player = seated(name, referee)
        except ExperimentError:
            return None
        return play(referee.level, player, split=split, n=n, first=first)

    return contestant


def exact(referee: Referee, split: str, n: int, first: int) -> np.ndarray | None:
    """The proven optimum, totals only; None where no search covers the level."""
    if referee.level.order is None:
        return None
    from fq_env.engine import Engine
    from fq_env.oracle import exact_on

    engine = Engine(referee.level, 1, split=split, autoreset="disabled")
    totals = [(exact_on(engine, referee.level, split, instance),) for instance in range(first, first + n)]
    return np.array(totals, [("total", "f8")])


# A new player is one entry: (referee, split, n, first instance) -> episode records (n,), or None where a level has no such.
PLAYERS: dict[str, Contestant] = {
    **{name: rule(name) for name in ("random", "fifo", "sequential", "critical_path", WARM_WAIT, "smallest_remaining")},
    CALIBRATED: rule(CALIBRATED),
    LOOKAHEAD: rule(LOOKAHEAD),
    statistics.EXACT: exact,
}


def table(
    logits: Logits, referee: Referee, *, split: str, n: int, first: int = 0, exposure: str | None = None
) -> list[dict[str, Any]]:
    """The comparison of a policy with all players; see `statistics.compare` for the rows."""
    trained = play_policy(logits, referee.level, split=split, n=n, first=first, exposure=exposure)
    return statistics.compare({statistics.TRAINED: trained, **referee.players(split, n, first)})


# --------------------------------------------------------------------------- trained policies
@dataclass(frozen=True)
class Policy:
    """A trained policy that was opened. `configuration` is the hash of how it was trained but for its `seed`."""

    path: Path
    logits: Logits
    levels: tuple[str, ...]
    exposure: str
    seed: int
    configuration: str
    commit: str

    @property
    def method(self) -> tuple[str, ...]:
        """What all seeds of one method share. The commit is not among it: most of them change nothing in a training."""
        return (self.configuration, self.exposure, *self.levels)


def open_bundle(path: Path) -> Policy:
    """The policy of a bundle. Raises ConductorError."""
    from conductor.bundle import load_bundle
    from conductor.trust import ANYONE

    bundle = load_bundle(path, ANYONE)
    about = bundle.manifest
    logits = bundle.policy.logits_many
    return Policy(path, logits, tuple(about.levels), about.exposure, about.seeds[0], about.training, about.git_commit)


def open_run(path: Path) -> Policy:
    """The policy that a run exported, or, if it was interrupted before that, the one of its checkpoint."""
    if (path / "bundle" / "manifest.json").is_file():
        return replace(open_bundle(path / "bundle"), path=path)
    from experiments.algorithms import load_model, torch_logits
    from experiments.config import names_of
    from experiments.run_folder import read_run

    run = read_run(path)
    logits = torch_logits(load_model(run.folder, run.config["algo"]))
    about, levels, seed = run.versions, names_of(run.config["level"]), int(run.config["seed"])
    return Policy(path, logits, levels, run.exposure, seed, about["configuration"], about["git_commit"])


def paths_of(key: str, value: Any) -> list[Path]:
    """The folders that `key=value` names: a path, a pattern (but for empty folders), or a list of both; each once.

    Raises:
        ExperimentError: a pattern finds nothing.
    """
    found: dict[Path, Path] = {}
    for word in [] if value is None else value if isinstance(value, list) else [value]:
        names = [str(word)]
        if re.search(r"[*?\[]", str(word)):
            names = sorted(name for name in glob.glob(str(word)) if not Path(name).is_dir() or any(Path(name).iterdir()))
        if not names:
            raise ExperimentError(f"{key}={word}: no folder matches this pattern")
        for name in names:
            found.setdefault(Path(name).resolve(), Path(name))
    return list(found.values())


def open_policies(key: str, value: Any) -> list[Policy]:
    """The policies of the run folders and bundles that `key=value` names.

    Raises:
        ExperimentError: one is neither a run folder nor a bundle.
        ConductorError: a bundle does not pass its checks.
    """
    policies = []
    for path in paths_of(key, value):
        if (path / "manifest.json").is_file():
            policies.append(open_bundle(path))
        elif (path / "config.yaml").is_file():
            policies.append(open_run(path))
        else:
            from experiments.run_folder import unfinished

            raise ExperimentError(
                f"{key}={path}: is neither a run folder (config.yaml) nor a bundle (manifest.json); name one of them"
                f"{unfinished(path.parent)}"
            )
    return policies


def methods(policies: Sequence[Policy]) -> dict[str, list[Policy]]:
    """Name -> policies that differ in their training seed only, in the given order."""
    groups: dict[tuple[str, ...], list[Policy]] = {}
    for policy in policies:
        key = policy.method
        if any(policy.seed == other.seed for other in groups.get(key, [])):
            key = (*key, str(policy.path))  # the same training twice says nothing of seeds
        groups.setdefault(key, []).append(policy)
    return {name_of(group): group for group in groups.values()}


def name_of(group: Sequence[Policy]) -> str:
    """A method's name in tables: the path of its first policy, and how many seeds there are."""
    return str(group[0].path) + (f" ({len(group)} seeds)" if len(group) > 1 else "")


def at_several_commits(groups: Mapping[str, Sequence[Policy]]) -> list[str]:
    """A sentence for each method whose seeds were trained at different commits."""
    return [
        f"{name}: trained at {commits} commits; where these differ in how a policy is trained, it is not one method"
        for name, group in groups.items()
        if (commits := len({policy.commit for policy in group})) > 1
    ]


def level_for(level: Any, policies: Sequence[Policy]) -> Level:
    """The level that `level=` names, or the one on which all policies were trained. Raises ExperimentError."""
    from experiments.config import any_level

    if level is not None:
        return any_level(level)
    trained_on = sorted({level for policy in policies for level in policy.levels}, key=lambda level: (len(level), level))
    if len(trained_on) != 1:
        what = f"the policies were trained on levels {', '.join(trained_on)}" if trained_on else "no policy names one"
        raise ExperimentError(f"level=null: {what}; say which to play, for example level={(trained_on or ['11'])[0]}")
    return any_level(trained_on[0])


def play_method(policies: Sequence[Policy], level: Level, *, split: str, n: int, first: int = 0) -> np.ndarray:
    """Episode records (seeds, n) of a method's policies, each with the exposure that it was trained under."""
    return np.stack([play_policy(p.logits, level, split=split, n=n, first=first, exposure=p.exposure) for p in policies])


# --------------------------------------------------------------------------- the command
@dataclass
class EvaluateConfig:
    """Keys of the command; explained in `configs/evaluate.yaml`."""

    runs: Any = MISSING
    bundles: Any = MISSING
    players: Any = MISSING
    level: Any = MISSING
    split: str = MISSING
    n: int = MISSING
    first: int = MISSING
    fit: int = MISSING
    out: str | None = MISSING


def check_instances(split: str, n: int, first: int, fit: int) -> None:
    """Refuses a split that does not exist and counts that make no table. Raises ExperimentError."""
    if split not in SPLITS:
        raise ExperimentError(f"split={split}: must be one of {', '.join(SPLITS)}")
    if n < 2 or first < 0 or fit < 1:
        raise ExperimentError(f"n={n} first={first} fit={fit}: n must be at least 2, first at least 0, fit at least 1")


def chosen_players(value: Any) -> list[str]:
    """The players that `players=` names, all if null; `random` is always among them, as perf is measured from it."""
    every = [name for name in PLAYERS if name != LOOKAHEAD]
    names = every if value is None else [str(v) for v in (value if isinstance(value, list) else [value])]
    for name in names:
        if name not in PLAYERS:
            raise ExperimentError(f"players={name}: must be among {', '.join(PLAYERS)}")
    return ["random", *(name for name in names if name != "random")]


def evaluate(cfg: EvaluateConfig) -> list[dict[str, Any]]:
    """Plays, prints and, if asked, writes the table with its figures; the rows of `statistics.compare`."""
    check_instances(cfg.split, cfg.n, cfg.first, cfg.fit)
    names = chosen_players(cfg.players)
    check_out_folder(cfg.out)
    found = methods([*open_policies("runs", cfg.runs), *open_policies("bundles", cfg.bundles)])
    level = level_for(cfg.level, [policy for group in found.values() for policy in group])
    where: dict[str, Any] = {"split": cfg.split, "n": cfg.n, "first": cfg.first}
    episodes = {name: play_method(group, level, **where) for name, group in found.items()}
    episodes |= Referee(level, cfg.fit).players(names=names, **where)
    absent = [] if cfg.players is None else [name for name in names if name not in episodes]
    if absent:
        raise ExperimentError(f"players={absent[0]}: does not play level {level.number or level.name}; name another player")
    rows = statistics.compare(episodes, list(found))
    text = statistics.markdown(rows, level.probe)
    print("\n".join([text, *at_several_commits(found)]))
    if cfg.out is not None:
        policies = {
            name: [
                {"path": str(p.path), "seed": p.seed, "trained_on": ",".join(p.levels), "exposure": p.exposure} for p in group
            ]
            for name, group in found.items()
        }
        title = f"level {level.number}, {level.name}: {cfg.n:,} {cfg.split} instances"

        def write(folder: Path) -> None:
            from experiments import figures

            write_text(folder / "table.md", f"# {title}\n\n{text}\n")
            write_json(folder / "results.json", {"level": level.name, **where, "policies": policies, "rows": rows})
            scores = {name: statistics.totals(records) for name, records in episodes.items()}
            figures.profiles(folder / "profile.png", scores, title)
            figures.intervals(folder / "intervals.png", rows, title)

        print(f"\nwritten: {write_folder(Path(cfg.out), write)}")
    return rows


def main() -> None:
    """The command line; `run=` and `bundle=` are the same as `runs=` and `bundles=`."""
    cli.one_thread_per_process()
    words = [re.sub(r"^(run|bundle)=", r"\1s=", word) for word in sys.argv[1:]]
    cli.guarded(lambda: evaluate(cli.read("evaluate", EvaluateConfig, words, __doc__ or "")), EvaluateConfig)


if __name__ == "__main__":
    main()

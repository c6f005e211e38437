"""Who shows how it is done: `lookahead` over a base player, or, where the order of calls is hidden, the proven optimum's plan.

It plays train instances and knows no other split.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from experiments.errors import ExperimentError
from experiments.evaluate import CALIBRATED, WARM_WAIT, Referee, linear_rule, seated
from experiments.recipes.trajectories import Recorder, Trajectories, joined
from fq_env.engine import Engine, Player, make_engine
from fq_env.level import Level
from fq_env.oracle import Search, action_of

SIDE_BY_SIDE = 64  # episodes that lookahead plays at a time
SECONDS = 10.0  # between two lines of progress
Report = Callable[[int], None]  # called with how many episodes are done
# Actions (k,) for the running episodes `live` (k,) of an engine, by what is seen in them, (k, 512) float32, and what is legal,
# (k, 128) bool; the engine's own buffers may be overwritten by then.
Mover = Callable[[Engine, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rule_of(level: Level) -> str:
    """The rule that sets a level's bar, and is the teacher's usual base: the fitted one, or else `critical_path_warm_wait`."""
    return WARM_WAIT if linear_rule(level) is None else CALIBRATED


def base_players(referee: Referee, names: list[str]) -> dict[str, Player]:
    """The base players that `teacher.bases` names, fitted on train instances. Raises ExperimentError.

    `calibrated` is the level's own rule (`rule_of`). A word NAME/THETA/VARIANT is a rule with its two parameters, such as
    `critical_path_warm_wait/0.5/2`.
    """
    found: dict[str, Player] = {}
    for word in names:
        name, *parameters = word.split("/")
        player = seated(rule_of(referee.level) if name == CALIBRATED else name, referee)
        if parameters:
            try:
                theta, variant = float(parameters[0]), int(parameters[1])
            except (ValueError, IndexError):
                raise ExperimentError(f"recipe_options.teacher.bases: {word} must be NAME or NAME/THETA/VARIANT") from None
            player = player._replace(theta=theta, variant=variant)
        found[word] = player
    return found


def advantages_of(means: np.ndarray, masks: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Mean total of the chosen actions (k,) minus that of the other legal ones, float64; NaN where there is no other.

    `means` (k, 128) float64 count where `masks` (k, 128) allow.
    """
    rows, others = np.arange(len(actions)), masks.sum(axis=1) - 1
    known = np.where(masks, means, 0.0)
    chosen = known[rows, actions]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(others > 0, chosen - (known.sum(axis=1) - chosen) / others, np.nan)


def expected_of(means: np.ndarray, masks: np.ndarray) -> list[np.ndarray]:
    """Of each row of `means` (k, 128) those that `masks` (k, 128) allow, minus their mean, float32; none where it is one."""
    counts = masks.sum(axis=1)
    centred = np.where(masks, means - (np.where(masks, means, 0.0).sum(axis=1) / counts)[:, np.newaxis], 0.0)
    several = counts > 1
    parts = np.split(centred.astype(np.float32)[several][masks[several]], np.cumsum(counts[several])[:-1])
    whole = iter(parts)
    return [next(whole) if some else np.zeros(0, np.float32) for some in several.tolist()]


def play(
    level: Level, player: Player, base: int, instances: np.ndarray, exposure: str, report: Report | None = None,
    mover: Mover | None = None, most: int | None = None,
) -> Trajectories:  # fmt: skip
    """Train `instances` (k,), k > 0, played by a player; with `rollouts` it looks ahead, and says what it expects of actions.

    With a `mover` that one's actions are taken, by what an agent of the level is shown, and the player only says what it
    expects. After `most` decisions of an episode the player goes on alone, without looking ahead.
    """
    engine = make_engine(level, min(SIDE_BY_SIDE, len(instances)), exposure=exposure, autoreset="disabled")
    parts = []
    for first in range(0, len(instances), engine.n):
        chunk = instances[first : first + engine.n]
        live, recorder, decisions = np.arange(len(chunk)), Recorder(len(chunk)), 0
        engine.reset(live, split="train", instances=chunk.tolist())
        while live.size:
            obs, masks = engine.obs[live], engine.masks[live]
            alone = most is not None and decisions >= most
            asked = player._replace(rollouts=0) if alone else player
            actions = engine.advise(asked, live)
            means = engine.means[live] if asked.rollouts else None
            if mover is not None and not alone:
                actions[live] = mover(engine, live, obs, masks)
            if means is not None:
                recorder.note(live, actions[live], advantages_of(means, masks, actions[live]), expected_of(means, masks))
            else:
                recorder.note(live, actions[live], np.full(len(live), np.nan))
            engine.step(actions)
            decisions += 1
            live = live[~(engine.terminated | engine.truncated)[live]]
        parts.append(recorder.done(chunk, engine.episodes["total"][: len(chunk)], base))
        if report is not None:
            report(first + len(chunk))
    return joined(parts)


def play_plans(level: Level, instances: np.ndarray, exposure: str, report: Report | None = None) -> Trajectories:
    """Train `instances` (k,), k > 0, of a level of hidden order, each played by the plan that is proven best for it."""
    engine = Engine(level, 1, exposure=exposure, autoreset="disabled")
    parts, row = [], np.zeros(1, np.int64)
    for done, instance in enumerate(instances, 1):
        recorder = Recorder(1)
        engine.reset(row, split="train", instances=[instance])
        for step in Search(engine, level).best()[1]:
            action = np.array([action_of(engine, step)])
            recorder.note(row, action, np.array([np.nan]))
            engine.step(action)
        parts.append(recorder.done(instances[done - 1 : done], engine.episodes["total"], -1))
        if report is not None and (done % SIDE_BY_SIDE == 0 or done == len(instances)):
            report(done)
    return joined(parts)


class Progress:
    """One line for people every few seconds: how many of `total` episodes are played."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.began = self.last = time.monotonic()

    def after(self, before: int) -> Report:
        """The same for a part that begins when `before` episodes are done."""
        return lambda done: self(before + done)

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= SECONDS and done < self.total:
            left = (now - self.began) / done * (self.total - done)
            print(f"{self.what}: {done:,} of {self.total:,} episodes, about {left:.0f} s left", flush=True)
            self.last = now

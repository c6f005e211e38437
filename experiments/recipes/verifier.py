"""Believes nothing: every trajectory is replayed in a fresh engine, and kept only if what it claims is true and good enough.

The rule that sets the bar plays the same instances. Durations and failures are hashed per task, so both meet the same world.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from experiments.fast_ppo.frames import Frames
from experiments.fast_ppo.imitation import Examples
from experiments.fast_ppo.ladder import Ladder
from experiments.recipes.trajectories import Trajectories
from fq_env.engine import Engine, Player, make_engine
from fq_env.level import Level
from fq_env.live import live_actions, possible_actions
from pit.layout import N_ACTIONS, WAIT

SIDE_BY_SIDE = 256
KEPT, ILLEGAL, UNENDED, UNCONFIRMED = "kept", "with an illegal action", "that end elsewhere", "with another score"
BELOW, BEATEN = "below the rule", "beaten from another base player"
VERDICTS = (KEPT, ILLEGAL, UNENDED, UNCONFIRMED, BELOW, BEATEN)


@dataclass
class Replay:
    """What a replay of k trajectories found.

    Attributes:
        verdicts: (k,) of `VERDICTS`; an illegal action ends a replay, and so do scores of other actions than the legal ones.
        rule: (k,) float64, totals of the rule on the same instances.
        examples: frames of all episodes up to where their replay ended, weights 1.
        advantages: (frames,) float32, as the trajectories claim them.
    """

    verdicts: np.ndarray
    rule: np.ndarray
    examples: Examples
    advantages: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the episodes that are kept, int64."""
        return np.flatnonzero(self.verdicts == KEPT)

    def gathered(self) -> np.ndarray:
        """What each kept episode's rewards add up to, (k,) float32."""
        of = self.examples
        first = {int(episode): i for i, episode in reversed(list(enumerate(of.episodes)))}
        return of.returns[[first[int(k)] for k in self.kept]]

    def counts(self) -> dict[str, int]:
        """Verdict -> how many episodes; every verdict is named."""
        found = Counter(self.verdicts.tolist())
        return {verdict: found[verdict] for verdict in VERDICTS}


def replay(
    level: Level, trajectories: Trajectories, rule: Player, ladder: Ladder, *,
    exposure: str, reward: str, gamma: float, believe: bool = False, at_least_rule: bool = True, masks: bool = True,
) -> Replay:  # fmt: skip
    """Plays k > 0 trajectories again, on the train instances that they name.

    Args:
        rule: whose totals set the bar.
        ladder: of the network that is to learn from the frames.
        reward, gamma: of the returns that its value learns.
        believe: whether other scores than claimed are let pass; of one instance then all trajectories are kept.
        masks: whether the frames know what is legal, or only what may be (`fq_env.live.possible_actions`).
        at_least_rule: whether a confirmed score below the rule's on the same instance is refused.
    """
    lengths, starts, k = trajectories.lengths, trajectories.starts, len(trajectories)
    frames = Frames(max(1, int(lengths.sum())), ladder)
    engine = make_engine(level, min(SIDE_BY_SIDE, k), exposure=exposure, reward=reward, autoreset="disabled")
    verdicts, bar = np.full(k, KEPT, object), np.zeros(k)
    of, steps, rewards = [], [], np.zeros(len(trajectories.actions))
    counts = trajectories.counts
    firsts, parts = np.where(counts > 0, np.cumsum(counts) - counts, -1), []
    for first in range(0, k, engine.n):
        here = np.arange(first, min(k, first + engine.n))
        engine.reset(here - first, split="train", instances=trajectories.instances[here].tolist())
        live, t = here[lengths[here] > 0], 0
        verdicts[here[lengths[here] == 0]] = UNENDED
        actions = np.zeros(engine.n, np.int64)
        while live.size:
            rows, at = live - first, starts[live] + t
            wanted = trajectories.actions[at]
            inside = (wanted >= 0) & (wanted < N_ACTIONS)
            legal = inside & engine.masks[rows, wanted.clip(0, N_ACTIONS - 1)]
            verdicts[live[~legal]] = ILLEGAL
            told = trajectories.counts[at]
            sound = (told == 0) | (told == engine.masks[rows].sum(axis=1))
            verdicts[live[legal & ~sound]] = UNCONFIRMED
            legal &= sound
            live, rows, at = live[legal], rows[legal], at[legal]
            if not live.size:
                break
            obs = engine.obs[rows]
            seen = engine.masks[rows] if masks else possible_actions(obs, live_actions(level))
            frames.add(obs, seen)
            if not masks:
                parts.append(without_mask(trajectories.expected, firsts[at], engine.masks[rows], seen))
            of.append(live)
            steps.append(at)
            actions[:] = engine.masks.argmax(axis=1)  # whatever is legal where nobody looks any more
            actions[rows] = wanted[legal]
            engine.step(actions)
            rewards[at] = engine.rewards[rows]
            t += 1
            ended = (engine.terminated | engine.truncated)[rows]
            last = lengths[live] == t
            verdicts[live[ended != last]] = UNENDED
            confirmed = engine.episodes["total"][rows] == trajectories.totals[live]
            if not believe:
                verdicts[live[ended & last & ~confirmed]] = UNCONFIRMED
            live = live[~ended & ~last]
        bar[here] = _totals(level, rule, trajectories.instances[here], exposure)
    if at_least_rule:
        verdicts[(verdicts == KEPT) & (trajectories.totals < bar)] = BELOW
    if not believe:
        _keep_the_best(verdicts, trajectories)
    episodes = np.concatenate(of) if of else np.zeros(0, np.int64)
    at = np.concatenate(steps) if steps else np.zeros(0, np.int64)
    returns = returns_of(rewards, lengths, gamma)
    ones = np.ones(len(at), np.float32)
    firsts, expected = firsts[at], trajectories.expected
    if parts:
        counts, expected = (np.concatenate(x) for x in zip(*parts, strict=True))
        firsts = np.where(counts > 0, np.cumsum(counts) - counts, -1)
    followed = returns[at].astype(np.float32)
    examples = Examples(frames, trajectories.actions[at], ones, followed, episodes, firsts, expected)
    return Replay(verdicts, bar, examples, trajectories.advantages[at])


def without_mask(
    expected: np.ndarray, firsts: np.ndarray, legal: np.ndarray, possible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is expected of each possible action, where only the legal ones' is known: an illegal one becomes `wait`, or
    else the first legal action.

    Args:
        expected, firsts: as in `Examples`, of these k frames.
        legal, possible: bool (k, 128); what is legal is possible.

    Returns:
        How many numbers each frame has (k,) int64, 0 where `firsts` < 0; and these, one frame behind the other, float32.
    """
    known = firsts >= 0
    rows, actions = legal[known].nonzero()
    order = np.arange(len(rows)) - np.searchsorted(rows, rows)  # of a row's legal actions
    whole = np.zeros((int(known.sum()), N_ACTIONS), np.float32)
    whole[rows, actions] = expected[firsts[known][rows] + order]
    instead = np.where(legal[known, WAIT], WAIT, legal[known].argmax(axis=1))
    whole = np.where(legal[known], whole, whole[np.arange(len(whole)), instead][:, np.newaxis])
    return np.where(known, possible.sum(axis=1), 0), whole[possible[known]]


def _keep_the_best(verdicts: np.ndarray, trajectories: Trajectories) -> None:
    """Of several kept trajectories of one instance the first of the best stays."""
    best: dict[int, int] = {}
    for k in np.flatnonzero(verdicts == KEPT).tolist():
        other = best.setdefault(int(trajectories.instances[k]), k)
        if other != k:
            worse = k if trajectories.totals[k] <= trajectories.totals[other] else other
            verdicts[worse] = BEATEN
            best[int(trajectories.instances[k])] = k + other - worse


def _totals(level: Level, rule: Player, instances: np.ndarray, exposure: str) -> np.ndarray:
    engine = Engine(level, len(instances), exposure=exposure, autoreset="disabled")
    engine.reset(split="train", instances=instances.tolist())
    engine.play(rule)
    totals: np.ndarray = engine.episodes["total"].copy()
    return totals


def returns_of(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted sums (m,) of what follows in each of the episodes that lie one behind the other in `rewards` (m,)."""
    returns, end = np.zeros(len(rewards)), len(rewards)
    for length in lengths[::-1]:
        carry = 0.0
        for i in range(end - 1, end - 1 - length, -1):
            carry = rewards[i] + gamma * carry
            returns[i] = carry
        end -= length
    return returns

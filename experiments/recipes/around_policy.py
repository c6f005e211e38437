"""Lookahead around a trained policy: its likeliest actions are tried in futures that are drawn afresh and that it plays on.

The copies of all episodes stand side by side in a second engine, so that one pass of the network decides for all of them.
What a copy has not reached within the horizon, the policy's own value stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.recipes.teacher import Report
from experiments.recipes.trajectories import Recorder, Trajectories, joined
from fq_env.engine import make_engine
from fq_env.level import Level

if TYPE_CHECKING:
    from experiments.fast_ppo import FastPPO
    from experiments.recipes.settings import RoundsConfig

COPIES = 1024  # of environments in the second engine, about


class Around:
    """A policy as a player that looks ahead around itself.

    Args:
        reward: that the policy's value was trained on, in units of `scale`.
    """

    def __init__(self, model: FastPPO, level: Level, cfg: RoundsConfig, exposure: str, reward: str, scale: float) -> None:
        self.model, self.cfg, self.scale = model, cfg, scale
        n = max(1, COPIES // (cfg.candidates * cfg.futures))
        self.engine, self.copies = (
            make_engine(level, k, exposure=exposure, reward=reward, autoreset="disabled")
            for k in (n, n * cfg.candidates * cfg.futures)
        )

    def play(self, instances: np.ndarray, report: Report | None = None) -> Trajectories:
        """Train `instances` (k,), k > 0, played to their end."""
        engine, parts = self.engine, []
        for first in range(0, len(instances), engine.n):
            chunk = instances[first : first + engine.n]
            live, recorder, decision = np.arange(len(chunk)), Recorder(len(chunk)), 0
            engine.reset(live, split="train", instances=chunk.tolist())
            actions = np.zeros(engine.n, np.int64)
            while live.size:
                actions[live], advantages = self.decide(live, decision)
                recorder.note(live, actions[live], advantages)
                engine.step(actions)
                live = live[~(engine.terminated | engine.truncated)[live]]
                decision += 1
            parts.append(recorder.done(chunk, engine.episodes["total"][: len(chunk)], -1))
            if report is not None:
                report(first + len(chunk))
        return joined(parts)

    def decide(self, live: np.ndarray, decision: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions (k,) int64 for the running episodes `live` (k,), and their advantages over what else was tried (k,).

        The policy's own choice stands unless another is better by `confidence` standard errors of the paired difference.
        """
        cfg = self.cfg
        own, logits = self.model.first_choice(self.engine.obs[live], self.engine.masks[live])
        with np.errstate(under="ignore"):
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        order = np.argsort(-p, axis=1, kind="stable")[:, : cfg.candidates]
        likely = np.take_along_axis(p, order, axis=1)
        tried = (likely >= cfg.least) & (likely > 0.0)
        tried[:, 0] = True
        open_ = np.flatnonzero(tried[:, 1:].any(axis=1))
        advantages = np.full(len(live), np.nan)
        if not open_.size:
            return own, advantages
        which, place = np.nonzero(tried[open_])
        which = open_[which]
        futures = decision * cfg.futures + np.arange(cfg.futures)
        returns = self.play_on(
            np.repeat(live[which], cfg.futures), np.repeat(order[which, place], cfg.futures), np.tile(futures, len(which))
        ).reshape(len(which), cfg.futures)
        chosen = own.copy()
        for k in open_.tolist():
            mine = which == k
            gains = returns[mine] - returns[mine][0]  # of each candidate over the policy's own choice, future by future
            mean = gains.mean(axis=1)
            error = gains.std(axis=1, ddof=1) / np.sqrt(cfg.futures)
            sure = mean - cfg.confidence * error
            best = int(np.where(sure > 0.0, mean, -np.inf).argmax()) if (sure[1:] > 0.0).any() else 0
            chosen[k] = order[k, place[mine][best]]
            advantages[k] = mean[best] - (mean.sum() - mean[best]) / (len(mean) - 1)
        return chosen, advantages

    def play_on(self, rows: np.ndarray, first: np.ndarray, futures: np.ndarray) -> np.ndarray:
        """The returns (k,) float64, in the reward's own units, of copies of environments `rows` (k,) that take the actions
        `first` (k,) in the `futures` (k,) and are then played on by the policy."""
        copies, gamma, k = self.copies, self.model.gamma, len(rows)
        copies.fork(self.engine, rows, futures)
        returns, discount = np.zeros(k), 1.0
        actions = np.zeros(copies.n, np.int64)
        actions[:k] = first
        live, steps = np.arange(k), 0
        while True:
            copies.step(actions)
            returns[live] += discount * copies.rewards[live]
            live = live[~(copies.terminated | copies.truncated)[live]]
            discount *= gamma
            steps += 1
            if not live.size:
                return returns
            if steps == self.cfg.horizon:
                returns[live] += discount * self.scale * self.model.value_of(copies.obs[live])
                return returns
            actions[live], _ = self.model.first_choice(copies.obs[live], copies.masks[live])

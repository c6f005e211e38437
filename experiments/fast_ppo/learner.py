"""`FastPPO`: sb3-contrib's `MaskablePPO` with a rollout and an update that two cores deserve.

The same algorithm, constructor, callbacks, logging, `learn` and `save`; a saved model loads in plain `MaskablePPO`. Faster
because only legal actions are computed, gradients are made by hand at the logits and (for MLP policies) through the networks,
observations that are mostly zero are multiplied only where they are not, values are computed once per rollout, and nothing
is allocated on the way.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from experiments.fast_ppo import kernels, slot_towers, towers
from experiments.fast_ppo.anchor import Anchor
from experiments.fast_ppo.autograd import Autograd
from experiments.fast_ppo.frames import Frames
from experiments.fast_ppo.ladder import Ladder, flat_ladder, member_ladder, slot_ladder
from experiments.fast_ppo.reward_scale import RewardScale
from experiments.fast_ppo.slot_towers import SlotTowers
from experiments.fast_ppo.towers import Towers
from pit.layout import N_ACTIONS, N_OBSERVATION

SAMPLER = 0x5A3B1E  # tells the sampler's stream from the environments' streams of the same seed


class Rollout:
    """One rollout of t steps of n environments: `frames` and arrays (t, n) float32 (`actions`: int64)."""

    def __init__(self, steps: int, n: int, ladder: Ladder) -> None:
        self.frames = Frames(steps * n, ladder)
        self.actions = np.zeros((steps, n), np.int64)
        self.log_probs, self.values, self.rewards, self.episode_starts, self.advantages, self.returns = (
            np.zeros((steps, n), np.float32) for _ in range(6)
        )


class FastPPO(MaskablePPO):
    """As `sb3_contrib.MaskablePPO`, for flat observations, up to 128 discrete actions and the CPU.

    Args:
        live_columns: bool (512,), False where a column is zero in every observation; those are left out.
        live_actions: bool (128,), False where an action is never legal; those are left out.
        (all others): see `MaskablePPO`.

    Raises:
        ValueError: a space or device that this learner does not cover; `MaskablePPO` does.
        FloatingPointError: a reward, an advantage or a gradient is not finite; the weights before it are kept.
        RuntimeError: an environment offers no legal action, or one that was declared dead.
    """

    policy_aliases: ClassVar[dict[str, Any]] = MaskablePPO.policy_aliases
    sampler: np.random.Generator
    anchor: Anchor | None = None  # a policy that updates are pulled towards
    reward_scale: RewardScale | None = None  # what rewards are divided by; None: 1

    def __init__(
        self,
        *args: Any,
        live_columns: np.ndarray | None = None,
        live_actions: np.ndarray | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.live_columns, self.live_actions = live_columns, live_actions
        kwargs["_init_setup_model"] = False
        super().__init__(*args, **kwargs)
        self.sampler = np.random.default_rng(None if self.seed is None else [self.seed, SAMPLER])
        if _init_setup_model:
            self._setup_model()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_net", "_rollout", "anchor", "reward_scale"]

    def _setup_model(self) -> None:
        if not isinstance(self.action_space, spaces.Discrete) or self.action_space.n > kernels.MAX_ACTIONS:
            raise ValueError(f"FastPPO needs a Discrete space of at most {kernels.MAX_ACTIONS} actions; use MaskablePPO")
        if not isinstance(self.observation_space, spaces.Box) or len(self.observation_space.shape) != 1:
            raise ValueError("FastPPO needs a Box observation of one dimension; use MaskablePPO")
        if self.device.type != "cpu":
            raise ValueError(f"FastPPO runs on the CPU; use device='cpu' or MaskablePPO (got {self.device})")
        super()._setup_model()
        self._net = self._network(self.policy, max(self.n_envs, self.batch_size or self.n_steps * self.n_envs))
        self._rollout = Rollout(self.n_steps, self.n_envs, self._net.ladder)
        self.rollout_buffer = self._rollout  # type: ignore[assignment]

    def _network(self, policy: Any, rows: int) -> Towers | SlotTowers | Autograd:
        """A policy's network by hand where we have one, else through autograd."""
        flat = flat_ladder(int(np.prod(self.observation_space.shape or ())), int(self.action_space.n))  # type: ignore[attr-defined]
        of_the_pit = (len(flat.columns), len(flat.actions)) == (N_OBSERVATION, N_ACTIONS)
        if towers.fits(policy):
            return Towers(policy, slot_ladder(self.live_columns, self.live_actions) if of_the_pit else flat, rows)
        if of_the_pit and slot_towers.fits(policy):
            return SlotTowers(policy, member_ladder(self.live_columns, self.live_actions), rows)
        return Autograd(policy, flat, rows)

    @property
    def ladder(self) -> Ladder:
        """Which columns and actions the networks compute with."""
        return self._net.ladder

    def memory(self) -> dict[str, Any]:
        """What rollouts and updates depend on beside weights, optimiser, environments and random states, as JSON."""
        found: dict[str, Any] = {}
        if self.anchor is not None:
            found["anchor_coefficient"] = self.anchor.coefficient
        if self.reward_scale is not None:
            found["reward_scale"] = self.reward_scale.memory()
        return found

    def remember(self, memory: dict[str, Any]) -> None:
        """Puts a `memory` back, into a learner with the same anchor and scale."""
        if self.anchor is not None:
            self.anchor.coefficient = memory["anchor_coefficient"]
        if self.reward_scale is not None:
            self.reward_scale.remember(memory["reward_scale"])

    def hold_to(self, weights: Mapping[str, Any], coefficient: float, target: float | None, rate: float) -> None:
        """From now on updates are pulled towards a policy of these `weights` (a state dictionary); see `Anchor`."""
        policy = copy.deepcopy(self.policy)
        policy.load_state_dict(weights)
        self.anchor = Anchor(self._network(policy, self._net.rows), self._rollout.rewards.size, coefficient, target, rate)

    # ------------------------------------------------------------------ rollout
    def _values(self, frames: Frames) -> np.ndarray:
        """Values (k,) float32 of all stored frames."""
        values, numbers, block = np.empty(frames.size, np.float32), np.arange(frames.size), self._net.rows
        for start in range(0, frames.size, block):
            order, _ = frames.batch(numbers[start : start + block], self._net)
            self._net.forward(policy=False)
            values[order] = self._net.values.numpy()[: len(order), 0]
        return values

    def _values_of(self, observations: np.ndarray) -> np.ndarray:
        """Values (k,) float32 of observations (k, width)."""
        frames = Frames(len(observations), self._net.ladder)
        frames.add(observations)
        return self._values(frames)

    def first_choice(self, observations: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Greedy actions (k,) int64 for observations (k, width) and masks (k, actions), and masked logits (k, actions)
        float32, -inf where illegal; of equals the smallest action."""
        net, frames = self._net, Frames(len(observations), self._net.ladder)
        net.read()
        numbers, places = frames.add(observations, masks), net.ladder.places[: masks.shape[1]].clip(0)
        logits = np.empty(masks.shape, np.float32)
        for start in range(0, len(numbers), net.rows):
            order, _ = frames.batch(numbers[start : start + net.rows], net)
            net.forward(value=False)
            logits[order] = net.logits.numpy()[: len(order)][:, places]
        logits = np.where(masks, logits, np.float32(-np.inf))
        return logits.argmax(axis=1), logits

    def value_of(self, observations: np.ndarray) -> np.ndarray:
        """Values (k,) float32 of observations (k, width), in the units of the learner's rewards."""
        self._net.read()
        return self._values_of(observations)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int, use_masking: bool = True
    ) -> bool:
        """As in `MaskablePPO`; callbacks see the same locals."""
        if use_masking and not is_masking_supported(env):
            raise ValueError(
                "the environment offers no action masks: wrap it with ActionMasker or learn with use_masking=False"
            )
        assert self._last_obs is not None, "no last observation: `learn` has not been set up"
        callback.on_rollout_start()
        began = time.perf_counter()
        net, roll, n = self._net, rollout_buffer, env.num_envs
        net.read()
        roll.frames.clear()
        uniform = self.sampler.random((n_rollout_steps, n), np.float32)
        all_legal = np.ones((n, int(self.action_space.n)), np.bool_)  # type: ignore[attr-defined]
        cut: list[tuple[int, int, np.ndarray]] = []  # truncated episodes: step, environment, last observation
        for t in range(n_rollout_steps):
            masks = get_action_masks(env).reshape(n, -1).astype(bool, copy=False) if use_masking else all_legal
            try:
                now = roll.frames.add(self._last_obs, masks)
            except ValueError as error:
                raise RuntimeError(f"at {self.num_timesteps:,} frames {error}") from None
            order, _ = roll.frames.batch(now, net)
            net.forward(value=False)
            actions = roll.actions[t]
            kernels.sample(
                net.logits.numpy(), order, roll.frames.words, net.ladder.places, now[0], uniform[t], actions, roll.log_probs[t]
            )
            new_obs, rewards, dones, infos = env.step(actions.copy())
            self.num_timesteps += n
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            roll.rewards[t] = rewards if self.reward_scale is None else self.reward_scale(rewards, dones)
            roll.episode_starts[t] = self._last_episode_starts
            ended = np.flatnonzero(dones)
            if ended.size:
                self._update_info_buffer([infos[i] for i in ended], dones[ended])
                for i in ended:
                    last = infos[i].get("terminal_observation")
                    if last is not None and infos[i].get("TimeLimit.truncated", False):
                        cut.append((t, int(i), last))
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        roll.values[:] = self._values(roll.frames).reshape(roll.values.shape)
        if self.anchor is not None:
            self.anchor.look(roll.frames)
        if cut:
            steps, where, last_observations = zip(*cut, strict=True)
            roll.rewards[steps, where] += self.gamma * self._values_of(np.stack(last_observations))
        kernels.advantages_of(
            roll.rewards, roll.values, roll.episode_starts, self._values_of(np.asarray(new_obs)), dones,
            self.gamma, self.gae_lambda, roll.advantages, roll.returns,
        )  # fmt: skip
        if not np.isfinite(roll.returns).all():
            name = "reward" if not np.isfinite(roll.rewards).all() else "value"
            raise FloatingPointError(f"a {name} was not finite in the rollout that ended at {self.num_timesteps:,} frames")
        callback.update_locals(locals())
        callback.on_rollout_end()
        self.logger.record("time/rollout_seconds", time.perf_counter() - began)
        return True

    # ------------------------------------------------------------------ update
    def train(self) -> None:
        """PPO's epochs over the rollout; logs what `MaskablePPO` logs."""
        began = time.perf_counter()
        self._update_learning_rate(self.policy.optimizer)
        rate = float(self.policy.optimizer.param_groups[0]["lr"])
        clip = float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]
        clip_vf = -1.0
        if self.clip_range_vf is not None:
            clip_vf = float(self.clip_range_vf(self._current_progress_remaining))  # type: ignore[operator]
        net, roll = self._net, self._rollout
        frames = roll.rewards.size
        batch_size = self.batch_size or frames
        rows: list[np.ndarray] = []  # means of each batch
        kls: list[float] = []
        sums = np.zeros(len(kernels.SUMS))
        go_on = True
        net.read()
        for epoch in range(self.n_epochs):
            order, kls = self.sampler.permutation(frames), []
            for start in range(0, frames, batch_size):
                batch = order[start : start + batch_size]
                self._gradient(batch, clip, clip_vf, sums)
                rows.append(sums / len(batch))
                kls.append(float(rows[-1][3]))
                if self.target_kl is not None and kls[-1] > 1.5 * self.target_kl:
                    go_on = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {kls[-1]:.2f}")
                    break
                norm = net.step(rate, self.max_grad_norm)
                if not np.isfinite(norm):
                    net.write()
                    raise FloatingPointError(f"a gradient was not finite at {self.num_timesteps:,} frames")
            self._n_updates += 1
            if not go_on:
                break
        net.write()
        policy_loss, value_loss, entropy, _, clipped, anchor_kl = np.mean(rows, axis=0)
        last = rows[-1]
        record = self.logger.record
        record("train/entropy_loss", -entropy)
        record("train/policy_gradient_loss", policy_loss)
        record("train/value_loss", value_loss)
        record("train/approx_kl", np.mean(kls))
        record("train/clip_fraction", clipped)
        record("train/loss", last[0] + self.vf_coef * last[1] - self.ent_coef * last[2])
        record("train/explained_variance", explained_variance(roll.values.ravel(), roll.returns.ravel()))
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", clip)
        if self.clip_range_vf is not None:
            record("train/clip_range_vf", clip_vf)
        if self.anchor is not None:
            record("train/anchor_kl", anchor_kl)
            record("train/anchor_coefficient", self.anchor.coefficient)
            self.anchor.adapt(float(anchor_kl))
        if self.reward_scale is not None:
            record("train/reward_scale", self.reward_scale.deviation)
        record("time/update_seconds", time.perf_counter() - began)

    def _gradient(self, batch: np.ndarray, clip: float, clip_vf: float, sums: np.ndarray) -> None:
        """Losses of the frames `batch` (b,) into `sums`, their gradient into the networks."""
        net, roll, anchor = self._net, self._rollout, self.anchor
        order, ends = roll.frames.batch(batch, net)
        net.forward()
        kernels.losses(
            net.logits.numpy(), net.values.numpy()[:, 0], order, roll.frames.words, net.ladder.places,
            net.ladder.heights, ends, roll.actions.ravel(), roll.log_probs.ravel(), roll.advantages.ravel(),
            roll.returns.ravel(), roll.values.ravel(), self.normalize_advantage and len(batch) > 1, clip, clip_vf,
            self.ent_coef, self.vf_coef, net.d_logits.numpy() if anchor is None else anchor.logits,
            0.0 if anchor is None else anchor.coefficient, net.d_logits.numpy(), net.d_values.numpy()[:, 0], sums,
        )  # fmt: skip
        net.backward()

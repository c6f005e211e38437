"""Many environments for stable-baselines3: its `VecEnv` contract over the kernel, with no Python per environment.

This is the only module of the game that imports stable-baselines3.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from fq_env.engine import make_engine
from fq_env.env import action_space, check_number, observation_space, read_actions, read_options
from fq_env.errors import FQError
from fq_env.state import EPISODE
from pit import layout

if TYPE_CHECKING:
    from fq_env.level import Level


class FunctionQuestVecEnv(VecEnv):
    """`n_envs` environments that reset within the step that ends them, as stable-baselines3 expects.

    Arguments are those of `FunctionQuestVectorEnv`; `seed` starts the train streams. Observations (n, 512) float32,
    rewards (n,) float32 and dones (n,) bool are new arrays each step. `infos` is the same list of empty dictionaries,
    except where an episode ended: there a new one holds `episode` (return, length, seconds, as `Monitor` writes them),
    `score` (a record of `fq_env.state.EPISODE`, read by name), `is_success`, `TimeLimit.truncated`, and, where truncated only,
    `terminal_observation`.
    """

    def __init__(
        self,
        level: int | str | Level | Sequence[int | str | Level] = 1,
        n_envs: int = 1,
        seed: int | None = None,
        exposure: str | None = None,
        reward: str = "potential",
        max_episode_steps: int | None = None,
        threads: int = 1,
    ) -> None:
        n_envs = check_number("n_envs", n_envs, level)
        self._engine = make_engine(
            level,
            n_envs,
            exposure=exposure,
            reward=reward,
            autoreset="same_step",
            threads=threads,
            max_episode_steps=max_episode_steps,
            seed=seed,
        )
        self.render_mode = None
        self._actions = np.zeros(n_envs, np.int64)
        self._episodes = self._engine.episodes.view(f"V{EPISODE.itemsize}")  # NumPy copies plain bytes four times faster
        self._empty: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self._begin = time.time_ns()
        self._begun = False
        super().__init__(n_envs, observation_space(), action_space())

    def reset(self) -> np.ndarray:
        """Starts new episodes everywhere, after what `seed` and `set_options` asked for; observations (n, 512) float32."""
        engine = self._engine
        engine.renew_obs()  # what `step_wait` gave away stays as it is
        for i, (split, instance) in enumerate(map(read_options, self._options)):
            if split is not None:
                engine.reset(indices=np.array([i]), split=split, instances=instance)
        streamed = np.array([i for i, options in enumerate(self._options) if not options])
        if streamed.size:
            engine.reset(indices=streamed)
        self._reset_options()
        self._begun = True
        self.reset_infos = [
            {"instance_seed": instance_seed, "phi0": phi0}
            for instance_seed, phi0 in zip(engine.instance_seeds.tolist(), engine.phi0.tolist(), strict=True)
        ]
        return engine.obs

    def step_async(self, actions: np.ndarray) -> None:
        """Notes the actions (n,) of the next `step_wait`.

        Raises gymnasium's ResetNeeded before the first `reset`, its InvalidAction for what is none of `action_space`.
        """
        if not self._begun:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        self._actions = read_actions(actions, self.num_envs)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One decision in each environment: observations, rewards, dones, infos (see the class)."""
        engine = self._engine
        engine.renew_obs()
        ended = engine.step(self._actions)
        dones = engine.terminated | engine.truncated
        infos = self._empty
        if ended:
            infos = infos.copy()
            self._fill(infos, dones.nonzero()[0])
        return engine.obs, engine.rewards.astype(np.float32), dones, infos

    def _fill(self, infos: list[dict[str, Any]], ended: np.ndarray) -> None:
        """Puts new dictionaries where episodes ended; records are read by name, which costs less than a dictionary each."""
        seconds = (time.time_ns() - self._begin) // 1000 / 1e6
        engine = self._engine
        records = np.ndarray(len(ended), EPISODE, self._episodes.take(ended))
        returns, lengths = records["reward_sum"].tolist(), records["steps"].tolist()
        statuses, cuts, solved = records["status"].tolist(), engine.truncated[ended].tolist(), layout.SOLVED
        for i, r, steps, record, status, cut in zip(ended.tolist(), returns, lengths, records, statuses, cuts, strict=True):
            infos[i] = {
                "episode": {"r": r, "l": steps, "t": seconds},
                "score": record,
                "is_success": status == solved,
                "TimeLimit.truncated": cut,
            }
            if cut:
                infos[i]["terminal_observation"] = engine.final_obs[i].copy()

    def action_masks(self) -> np.ndarray:
        """The legal actions now: a new bool array (n, 128), no row all False."""
        return self._engine.masks.copy()

    @property
    def playing(self) -> np.ndarray:
        """The level of each environment now, (n,) int64, as its number among the different levels given."""
        return self._engine.playing

    def assign(self, levels: np.ndarray) -> None:
        """What each environment plays from its next reset on, (n,) integers as in `playing`. Raises FQError."""
        self._engine.assign(levels)

    def expose(self, exposure: str) -> None:
        """The exposure that each environment shows from its next reset on; not part of `state`. Raises FQError."""
        self._engine.expose(exposure)

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all that the next step and the choice of its actions depend on: `memory` (n, bytes) uint8, `masks`
        (n, 128) bool, `obs` (n, 512) float32."""
        engine = self._engine
        return {"memory": engine.memory.copy(), "masks": engine.masks.copy(), "obs": engine.obs.copy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts a `state()` back, into environments of the same levels and version.

        Raises:
            FQError: it is of another number of environments or of other levels.
        """
        engine = self._engine
        engine.renew_obs()  # what `step_wait` gave away stays as it is
        for name, own in (("memory", engine.memory), ("masks", engine.masks), ("obs", engine.obs)):
            if state[name].shape != own.shape or state[name].dtype != own.dtype:
                raise FQError(f"the state's {name} is {state[name].shape}; that of these environments is {own.shape}")
            own[:] = state[name]
        self._begun = True

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """New train streams at the next reset, one per environment, all derived from `seed` (None: from fresh entropy)."""
        self._engine.seed(seed)
        return [seed] * self.num_envs

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute of this adapter, once per environment; AttributeError if there is none."""
        return [getattr(self, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refused: the environments share one block of memory and have no attributes of their own."""
        raise FQError(f"attribute {attr_name!r} cannot be set on single environments; give it when the environments are made")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """`action_masks` is the one method: without indices a list of **one** array (n, 128), which sb3-contrib's
        `np.stack` turns into all masks in one go; with indices one array (128,) for each."""
        if method_name != "action_masks":
            raise AttributeError(f"the environments have no method {method_name!r}; they have 'action_masks'")
        masks = self.action_masks()
        return [masks] if indices is None else [masks[i] for i in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        """True for `Monitor` alone, because infos hold `episode` as it would write it."""
        return [wrapper_class is Monitor] * len(self._indices(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """No environment draws images."""
        return [None] * self.num_envs

    def _indices(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))


def make_sb3_env(
    level: int | str | Level | Sequence[int | str | Level] = 11, n_envs: int = 256, seed: int | None = 0, **kwargs: Any
) -> FunctionQuestVecEnv:
    """`n_envs` environments of a level for stable-baselines3, with train streams from `seed`; see `FunctionQuestVecEnv`."""
    return FunctionQuestVecEnv(level, n_envs, seed, **kwargs)

"""Many environments for Gymnasium: one kernel call per step for all of them, in any of the three autoreset modes.

Infos follow `gymnasium.vector.VectorEnv`: arrays over environments, each with a boolean `_key` that says where it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from fq_env.engine import make_engine
from fq_env.env import (
    RENDER_MODES,
    action_space,
    check_number,
    check_render_mode,
    observation_space,
    read_actions,
    read_options,
)
from fq_env.errors import FQError
from fq_env.picture import render_picture
from fq_env.render import render_text
from fq_env.state import EPISODE
from pit import layout

if TYPE_CHECKING:
    from fq_env.level import Level

ENGINE_MODES = {
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.DISABLED: "disabled",
}


class FunctionQuestVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` environments in one block of memory; spaces, rewards and episodes are those of `FunctionQuestEnv`.

    Args:
        num_envs: number of environments n.
        level: number, path or `Level`, or a sequence of n of them (mixed levels share spaces, kernel and exposure).
        exposure, reward, max_episode_steps, render_mode: as in `FunctionQuestEnv`.
        autoreset_mode: `AutoresetMode` or its value. NEXT_STEP (default): the step after an end ignores the action and
            returns the new episode's first observation with reward 0. SAME_STEP: the ending step returns it, and
            `infos["final_obs"]`, `infos["final_info"]` hold the end. DISABLED: `reset(options={"reset_mask": ...})`.
        threads: kernel threads; results are the same bits for any number.
        copy: False hands out the live observation buffer, which the next step overwrites.

    `infos` of each step hold `action_mask` bool (n, 128); where an episode ended, the score and its parts under their
    names; where one began, `instance_seed` uint64 and `phi0` float64. Raises FQError for arguments that make no sense.
    """

    def __init__(
        self,
        num_envs: int = 1,
        level: int | str | Level | Sequence[int | str | Level] = 1,
        exposure: str | None = None,
        reward: str = "potential",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        threads: int = 1,
        copy: bool = True,
    ) -> None:
        try:
            mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(m.value) for m in AutoresetMode)
            raise FQError(f"autoreset_mode is {autoreset_mode!r}; it must be one of {modes}") from None
        self.autoreset_mode = mode
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4, "autoreset_mode": mode}
        self.render_mode = check_render_mode(render_mode)
        self.num_envs = num_envs = check_number("num_envs", num_envs, level)
        self.copy = copy
        self.single_observation_space = observation_space()
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._engine = make_engine(
            level,
            num_envs,
            exposure=exposure,
            reward=reward,
            autoreset=ENGINE_MODES[mode],
            threads=threads,
            max_episode_steps=max_episode_steps,
            final="always",
        )
        self._new: np.ndarray | None = np.ones(num_envs, np.bool_)  # who was never reset; None for nobody
        self._ended: np.ndarray | None = None  # bool (n,): whose episode ended and has not been reset; None for nobody

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes in all environments, or in those of `options["reset_mask"]` (bool (n,)).

        `seed`: an int gives each environment its own stream derived from it; a sequence of n ints seeds each as
        `FunctionQuestEnv.reset(seed=...)` would, None leaving a stream as it is. `options`: as in `FunctionQuestEnv`,
        where `instance` may be a sequence with one instance per environment that is reset.
        """
        options = dict(options or {})
        started = self._read_mask(options.pop("reset_mask", None))
        split, instance = read_options(options)
        if seed is not None:
            self._seed(seed, started)
        chosen = np.flatnonzero(started)
        if isinstance(instance, (int, np.integer)):
            instance = [int(instance)] * len(chosen)
        self._keep(all_rows=bool(started.all()))
        self._engine.reset(chosen, split=split, instances=instance)
        if self._ended is not None:
            left = self._ended & ~started
            self._ended = left if left.any() else None
        if self._new is not None:
            left = self._new & ~started
            self._new = left if left.any() else None
        return self._engine.obs, self._infos(started=started)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision in each environment: actions (n,) integers in, then observations (n, 512) float32, rewards (n,)
        float64, terminations and truncations (n,) bool, and infos; all but `copy=False` observations are the caller's.

        Raises ResetNeeded before the first reset, InvalidAction for what is none of `action_space`.
        """
        if self._new is not None:
            never = np.flatnonzero(self._new).tolist()
            raise gymnasium.error.ResetNeeded(f"no episode is running in environments {never}: call reset() before step()")
        actions = read_actions(actions, self.num_envs)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended is not None:
            over = np.flatnonzero(self._ended).tolist()
            raise FQError(f"the episodes of environments {over} are over; reset them with options={{'reset_mask': ...}} first")
        engine = self._engine
        self._keep(all_rows=self.autoreset_mode is not AutoresetMode.DISABLED)
        n_ended = engine.step(actions)
        terminated, truncated = engine.terminated.copy(), engine.truncated.copy()
        ended = terminated | truncated if n_ended else None
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        infos = self._infos(started=ended if same_step else self._ended, ended=ended)
        self._ended = None if same_step else ended
        return engine.obs, engine.rewards.copy(), terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """The legal actions now: a new bool array (n, 128), no row all False."""
        return self._engine.masks.copy()

    def render(self) -> tuple[str | np.ndarray, ...] | None:
        """Each environment as text (`ansi`) or picture (`rgb_array`), or None without a render mode."""
        if self.render_mode is None:
            return None
        draw = render_text if self.render_mode == "ansi" else render_picture
        return tuple(draw(self._engine.pit_view(i)) for i in range(self.num_envs))

    def _keep(self, all_rows: bool) -> None:
        """Leaves the observations that were handed out to the caller, unless `copy=False`; `all_rows` will be written anew."""
        if self.copy:
            old = self._engine.renew_obs()
            if not all_rows:
                self._engine.obs[:] = old

    def _infos(self, started: np.ndarray | None, ended: np.ndarray | None = None) -> dict[str, Any]:
        """Infos of a step in which these episodes (bool (n,)) started and, None for none, ended."""
        engine = self._engine
        infos: dict[str, Any] = {"action_mask": engine.masks.copy(), "_action_mask": np.ones(self.num_envs, np.bool_)}
        if ended is not None:
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final_obs = np.full(self.num_envs, None, dtype=object)
                for i in np.flatnonzero(ended):
                    final_obs[i] = engine.final_obs[i].copy()
                final = {"action_mask": engine.final_masks.copy(), "_action_mask": ended} | self._episodes(ended)
                infos |= {"final_obs": final_obs, "_final_obs": ended, "final_info": final, "_final_info": ended}
            else:
                infos |= self._episodes(ended)
        if started is not None:
            for name, values in (("instance_seed", engine.instance_seeds), ("phi0", engine.phi0)):
                before, known = infos.get(name), infos.get(f"_{name}")
                infos[name] = values.copy() if before is None else np.where(started, values, before)
                infos[f"_{name}"] = started.copy() if known is None else started | known
        return infos

    def _episodes(self, ended: np.ndarray) -> dict[str, Any]:
        """The score parts of the episodes that ended (bool (n,)), zero elsewhere."""
        plain = f"V{EPISODE.itemsize}"  # NumPy copies plain bytes four times faster than records
        rows: np.ndarray = np.zeros(self.num_envs, EPISODE)
        rows.view(plain)[ended] = self._engine.episodes.view(plain)[ended]
        infos: dict[str, Any] = {name: rows[name] for name in EPISODE.names or ()}
        infos["is_success"] = ended & (rows["status"] == layout.SOLVED)
        return infos | {f"_{name}": ended for name in infos}

    def _read_mask(self, mask: Any) -> np.ndarray:
        """`options["reset_mask"]` as a new bool array (n,); all True if it is None."""
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        mask = np.array(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise FQError(
                f"options['reset_mask'] has dtype {mask.dtype} and shape {mask.shape}; "
                f"it must be a bool array of shape ({self.num_envs},) with at least one True"
            )
        return mask

    def _seed(self, seed: int | Sequence[int | None], started: np.ndarray) -> None:
        if isinstance(seed, (int, np.integer)):
            if not started.all():
                raise FQError(
                    f"reset was given the seed {seed} and a reset_mask; give a list of {self.num_envs} seeds instead"
                )
            super().reset(seed=int(seed))
            self._engine.seed(int(seed))
            return
        if len(seed) != self.num_envs:
            raise FQError(f"reset was given {len(seed)} seeds for {self.num_envs} environments; give one each, or one int")
        for i in np.flatnonzero(started).tolist():
            single = seed[i]
            if single is not None:
                self._engine.seed_one(i, single)

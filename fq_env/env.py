"""One environment for Gymnasium: the vector kernel with n = 1, and nothing of its own.

It turns one action into one kernel call and copies what comes back; it knows no rule of the game, and
the surfaces for many environments (`vector.py`, `sb3.py`) share its readers of options and episodes.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from fq_env.engine import RESET, STEP, make_engine
from fq_env.errors import FQError
from fq_env.picture import render_picture
from fq_env.render import render_text
from fq_env.single import bind, free_rows
from fq_env.state import EPISODE, SPLITS
from pit import layout
from pit.observation import obs_to_dict

if TYPE_CHECKING:
    from fq_env.level import Level

RENDER_MODES = ("ansi", "rgb_array")
MOST_INSTANCE = 2**63 - 1
# An episode's record as a struct: reading it costs a fifth of what NumPy's records take.
_EPISODE = struct.Struct(
    "=" + "".join({"f8": "d", "i8": "q", "u8": "Q"}[EPISODE[name].str[1:]] for name in EPISODE.names or ())
)


def observation_space() -> spaces.Box:
    """The observation of every level under every exposure: (512,) float32 in [-1, 1]."""
    return spaces.Box(-1.0, 1.0, (layout.N_OBSERVATION,), np.float32)


def action_space() -> spaces.Discrete:
    """The actions of every level: 16 slots x 7 verbs, then 16 global actions."""
    return spaces.Discrete(layout.N_ACTIONS)


def check_render_mode(render_mode: str | None) -> str | None:
    """`render_mode` itself; FQError if it is none of `RENDER_MODES` nor None."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise FQError(f"render_mode is {render_mode!r}; it must be 'ansi' (text), 'rgb_array' (a picture) or None")
    return render_mode


def check_number(key: str, n: Any, levels: Any) -> int:
    """The number of environments that `key` gives; FQError if it is none, or not that of the levels if several are given."""
    if not isinstance(n, int | np.integer) or n < 1:
        raise FQError(f"{key} is {n!r}; it must be a whole number, at least 1")
    if isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) != n:
        raise FQError(f"{key} is {n}, but {len(levels)} levels are given; it must be their number")
    return int(n)


def read_actions(actions: Any, n: int) -> np.ndarray:
    """One action for each of n environments, (n,) int64; InvalidAction unless all are of `action_space`."""
    given = np.asarray(actions)
    if given.shape != (n,) or given.dtype.kind not in "iu":
        raise gymnasium.error.InvalidAction(
            f"actions are {given.dtype} of shape {given.shape}; {n} integers from 0 to {layout.N_ACTIONS - 1} are needed"
        )
    numbers = np.ascontiguousarray(given, np.int64)
    if numbers.view(np.uint64).max() >= layout.N_ACTIONS:  # what is negative is large, too
        i = int(np.flatnonzero((given < 0) | (given >= layout.N_ACTIONS))[0])
        raise gymnasium.error.InvalidAction(
            f"action {given[i]} of environment {i} is none: an integer from 0 to {layout.N_ACTIONS - 1} is"
        )
    return numbers


def read_options(options: Mapping[str, Any] | None) -> tuple[str | None, Any]:
    """`(split, instance)` of `reset`'s options; `(None, None)` continues the train stream.

    Raises FQError for an unknown key or split, for a split without an instance, and for an instance that is no integer >= 0
    (a vector environment also takes a sequence of such integers, one per environment that is reset).
    """
    if not options:
        return None, None
    for key in options:
        if key not in ("split", "instance"):
            near = difflib.get_close_matches(str(key), ("split", "instance"), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise FQError(f"reset options hold the unknown key {key!r}; the keys are 'split' and 'instance'{hint}")
    split, instance = options.get("split", "train"), options.get("instance")
    if split not in SPLITS:
        raise FQError(f"reset options ask for split {split!r}; it must be one of {', '.join(SPLITS)}")
    if instance is None:
        raise FQError(f"reset options name split {split!r} without an instance; add for example 'instance': 0")
    numbers = np.asarray(instance)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or (numbers < 0).any() or (numbers > MOST_INSTANCE).any():
        raise FQError(f"reset options ask for instance {instance!r}; it must be an integer from 0 to {MOST_INSTANCE}")
    return split, instance


class FunctionQuestEnv(gymnasium.Env[np.ndarray, np.int64]):
    """
    ## Description
    A workflow of tasks has to be run. Each task is a call of a function, which runs in a pool of places and may need a
    model that takes time to load and memory to keep. Each step is one decision: start the head of a slot (a group of
    interchangeable open tasks) in one of its variants, hold it back, or wait. Everything else - allocating, loading,
    evicting, storing, tracking, releasing - is done by the Pit (`pit/README.md` is the rule book). Only waiting takes
    simulated time: after an action the clock runs to the next moment at which a start is possible.

    ## Action Space
    `Discrete(128)`: `slot * 7 + verb` for 16 slots, then 16 global actions.

    | Num | Action | Legal when |
    |-----|--------|------------|
    | slot * 7 + 0, 1, 2 | start the slot's head as `lite`, `standard`, `premium` | it can begin or load now |
    | slot * 7 + 3 | `queue` the head for its pool, which starts it as `standard` | the pool has no room for it now |
    | slot * 7 + 4 | `hold` the slot until a busy warm copy of its model gets free | such a copy is expected soon |
    | slot * 7 + 5 | `hedge`: start a second call of the head, the first to succeed counts | its one call takes too long |
    | slot * 7 + 6 | `cancel`: take the head back from its queue, or end its calls | it is queued, or takes too long |
    | 112 | `wait` for the next event | something is in flight, loads or is held |
    | 113, 114 | `back_off`, `back_off_long`: no new calls for the pool that fails most | a pool's last call failed |
    | 115 | `skip` an optional task | one is ready or blocked |
    | 116 | `refresh`: run a task again whose output is stale | others still need that output |
    | 117 | `defer` the workflow that is least urgent | several workflows have ready tasks |
    | 118-127 | reserved | never (masked) |

    A level enables a choice of them, its `system.verbs`, and always `wait`; what it leaves out is never legal. (In the old
    model, see `level`, six of a slot's verbs are stages of a call.)
    The mask is in `info["action_mask"]` and `action_masks()`: bool (128,), never empty. An illegal action becomes `wait`
    (or the first legal action) and costs a warning; what is none of the 128 is refused.

    ## Observation Space
    `Box(-1, 1, (512,), float32)`: ratios to the instance's own estimated lower bound, no identities, so that one policy
    reads any system.

    | Index | Block | Features |
    |-------|-------|----------|
    | 0-399 | 16 slots x 25 | members, rank, slack, estimates, start delays, model supply and demand, quality, price |
    | 400-463 | 8 pools x 8 | capacity, free, loading, warm, failures, utilisation, health |
    | 464-511 | 48 globals | clock, work left, last outcome, score parts so far, expected next events |

    `obs_to_dict(obs)` names every value; formulas, ranges and exposure classes stand in `pit/layout.py`. `exposure` hides
    classes of features (they read 0) and never changes layout, mask or dynamics.

    ## Rewards
    With `reward="potential"` each step pays the change of the best total score still reachable, so the return of an
    episode is `total - phi0` <= 0 (both in `info`); use no discount. `"sparse"` pays at the end only, `"makespan"` pays
    `-(time passed + change of the lower bound left) / lower bound`, and at a failure all that is left of the horizon;
    `"conductor"` success x (1 - latency) x quality at the end.

    ## Starting State
    Each reset draws a new workflow and new physics. `reset(seed=s)` starts the stream of train instances `s`,
    `reset()` continues it. `options={"split": "train" | "validation" | "test", "instance": i}` loads one named instance
    exactly. `info` holds `instance_seed` (np.uint64), `phi0` (float) and `action_mask`.

    ## Episode End
    * terminated: all required tasks are done, the workflow can no longer succeed, or its horizon has passed;
    * truncated: the step limit, set so that first-in-first-out never meets it (`max_episode_steps` overrides it).

    `info` of the last step holds the score and its parts (`total`, `base`, `efficiency`, `stability`, `optimization`),
    `is_success`, `phi0`, `reward_sum`, `makespan` and `lb` (s), `steps`, and counts (`calls`, `cold_starts`, `loads`,
    `wrong_calls`, `warnings`, `waits`, `holds`, ...).

    ## Arguments
    ```python
    import fq_env, gymnasium
    env = gymnasium.make("FunctionQuest/Level-11-v0", exposure="full", reward="potential", render_mode="ansi")
    ```
    * `level`: number, path of a level file, or `Level`; the ids set it. `FunctionQuest/Explicit-NN-v0` sets `"explicit-NN"`,
      the old model, whose agent performs every stage of every call (`fq_env/README.md`, section 7).
    * `exposure`: `"hidden"`, `"partial"`, `"full"`, or None for the level's own.
    * `reward`: `"potential"`, `"sparse"`, `"makespan"`, `"conductor"`.
    * `max_episode_steps`: int or None for the level's own limit. (`gymnasium.make` keeps this keyword for its own
      `TimeLimit`, which truncates alike but adds no score to `info`.)
    * `render_mode`: `"ansi"` (text), `"rgb_array"` (a picture) or None.

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(
        self,
        level: int | str | Level = 1,
        exposure: str | None = None,
        reward: str = "potential",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.observation_space = observation_space()
        self.action_space = action_space()
        engine = make_engine(
            level, 1, exposure=exposure, reward=reward, autoreset="disabled", max_episode_steps=max_episode_steps
        )
        self._engine = engine
        self._begun, self._ended, self._streams = False, True, False
        # Bound once: beside a step of a small level every look-up counts.
        self._operate, self._kernel, self._address = bind(engine)
        self._rows = free_rows()
        self._copy_mask = engine.masks[0].copy
        self._instance_seed, self._phi0 = engine._worlds["instance_seed"], engine._worlds["phi0"].item
        self._episode: Any = engine.episodes.view(np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode: the next train instance, or the one that `options` name.

        Returns the observation (512,) float32 and `{"instance_seed": np.uint64, "phi0": float, "action_mask": bool (128,)}`.
        Raises FQError for options that name no instance.
        """
        if seed is not None or options:
            split, instance = read_options(options)
            super().reset(seed=seed)
            if seed is not None:
                self._engine.seed(seed)
            self._engine.ask(split=split, instances=instance)
            self._streams = split is None
        elif not self._streams:
            self._engine.ask()
            self._streams = True
        give_obs, give_mask, row = next(self._rows)
        self._operate(self._kernel, self._address, RESET, 0, row)
        self._begun, self._ended = True, False
        info = {"instance_seed": self._instance_seed[0], "phi0": self._phi0(), "action_mask": give_mask()}
        return give_obs(), info

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision; see the class for what comes back. Raises ResetNeeded unless an episode is running, InvalidAction for
        what is none of `action_space`."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        try:
            number = index(action)
        except TypeError:
            number = -1
        if not 0 <= number < layout.N_ACTIONS:
            raise gymnasium.error.InvalidAction(f"action {action!r} is none: an integer from 0 to {layout.N_ACTIONS - 1} is")
        give_obs, give_mask, row = next(self._rows)
        reward, terminated, truncated = self._operate(self._kernel, self._address, STEP, number, row)
        if not (terminated or truncated):
            return give_obs(), reward, False, False, {"action_mask": give_mask()}
        self._ended = True
        return give_obs(), reward, terminated, truncated, self._last_info(give_mask())

    def _last_info(self, mask: np.ndarray) -> dict[str, Any]:
        """An episode's record as `info`; spelled out, which takes a third less time than `dict(zip(...))`."""
        (
            total, base, efficiency, stability, optimization, phi0, reward_sum, makespan, lb, cost, cost_low, busy,
            critical_wait, critical_quality, critical_cost, steps, calls, cold_starts, loads, wrong_calls, warnings, waits,
            holds, poor_calls, hedges, cancels, queued, skips, short, stragglers, outage_calls, stale_calls, refreshes,
            reused, late, decayed_calls, echo_calls, gated_calls, changed_calls, fetches, moved, deleted, flow, slowdown,
            workflows, defers, overflow, _, split, instance, level, status,
        ) = _EPISODE.unpack_from(self._episode)  # fmt: skip
        return {
            "total": total, "base": base, "efficiency": efficiency, "stability": stability, "optimization": optimization,
            "phi0": phi0, "reward_sum": reward_sum, "makespan": makespan, "lb": lb, "cost": cost, "cost_low": cost_low,
            "busy": busy, "critical_wait": critical_wait, "critical_quality": critical_quality, "critical_cost": critical_cost,
            "steps": steps, "calls": calls, "cold_starts": cold_starts, "loads": loads, "wrong_calls": wrong_calls,
            "warnings": warnings, "waits": waits, "holds": holds, "poor_calls": poor_calls, "hedges": hedges,
            "cancels": cancels, "queued": queued, "skips": skips, "short": short, "stragglers": stragglers,
            "outage_calls": outage_calls, "stale_calls": stale_calls, "refreshes": refreshes, "reused": reused, "late": late,
            "decayed_calls": decayed_calls, "echo_calls": echo_calls, "gated_calls": gated_calls,
            "changed_calls": changed_calls, "fetches": fetches, "moved": moved, "deleted": deleted, "flow": flow,
            "slowdown": slowdown, "workflows": workflows, "defers": defers, "overflow": overflow,
            "split": split, "instance": instance, "level": level, "status": status,
            "instance_seed": self._instance_seed[0],  # np.uint64: a Python int would overflow Gymnasium's vectors
            "is_success": status == layout.SOLVED,
            "action_mask": mask,
        }  # fmt: skip

    def action_masks(self) -> np.ndarray:
        """The legal actions now: a new bool array (128,), never all False."""
        return self._copy_mask()

    def view(self) -> dict[str, Any]:
        """The readable state behind the observation, for people and rendering; see `Engine.pit_view`."""
        return self._engine.pit_view(0)

    def obs_to_dict(self, obs: np.ndarray) -> dict[str, Any]:
        """An observation (512,) by name: `{"slots": [{"rank": 0.5, ...}], "pools": [...], "globals": {...}}`."""
        return obs_to_dict(obs)

    def render(self) -> str | np.ndarray | None:
        """The state as text (`ansi`) or as a picture, uint8 (height, width, 3); None without a render mode.

        Raises ResetNeeded before the first reset.
        """
        if not self._begun:
            raise gymnasium.error.ResetNeeded("there is nothing to show: call reset() before render()")
        if self.render_mode is None:
            return None
        return render_text(self.view()) if self.render_mode == "ansi" else render_picture(self.view())

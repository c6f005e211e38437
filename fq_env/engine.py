"""The engine: n environments in one block of memory, stepped by one kernel, as NumPy buffers.

Every surface (Gymnasium scalar and vector, SB3, players, evaluation) is a thin coat over this class.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fq_env.block import Block, aligned
from fq_env.errors import FQError
from fq_env.level import BlindLevel, ExplicitLevel, Level, load_level
from fq_env.level_record import level_record
from fq_env.state import (
    AUTORESETS,
    ENGINE,
    EPISODE,
    REWARDS,
    SPLITS,
    WORLD,
)
from fq_env.tables import write_workflow
from pit import compiled, state
from pit.layout import EXPOSURES, N_ACTIONS, N_OBSERVATION, N_WEIGHTS

RESET, STEP, PLAY, ADVISE, FORK = range(5)


def _choice(name: str, value: str, options: tuple[str, ...]) -> int:
    if value not in options:
        raise FQError(f"{name} {value!r} is unknown; choose one of {', '.join(options)}")
    return options.index(value)


def data_address(array: np.ndarray) -> int:
    """Where the data of a contiguous array lies; asking NumPy takes three times as long."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))


class Player(NamedTuple):
    """A rule by its code in `pit.rules` (-1: random legal actions) and its parameters.

    `theta`: a busy copy expected free within theta x the load estimate is waited for (critical_path_warm_wait); the most calls
    in flight, 0 = no limit (smallest_remaining). `variant`: 0 lite, 1 standard, 2 premium where the function has it, standard
    elsewhere. `weights`: a calibrated rule's numbers, float64 (`pit.layout.N_WEIGHTS`,). `rollouts`: each legal action is
    tried in so many drawn futures that the rule plays on, and the best is taken.
    """

    code: int
    theta: float = 1.0
    variant: int = 1
    weights: np.ndarray | None = None
    rollouts: int = 0


_kernels: list[Any] = []


def kernels() -> list[Any]:
    """The kernel module, imported (and, the very first time on a machine, compiled) when it is needed."""
    if not _kernels:
        compiled.announce("engine")
        from fq_env import kernel

        _kernels.append(kernel)
    return _kernels


def make_engine(levels: Any, n: int, **options: Any) -> Engine:
    """An engine for an agent: `Engine`, or for levels with explicit stages or without history one that stands around it."""
    given = levels if isinstance(levels, Sequence) and not isinstance(levels, str) else [levels]
    kinds = {type(load_level(x)) for x in given}
    if len(kinds) > 1:
        raise FQError("levels with explicit stages, without history and others cannot share an engine; make one for each")
    if kinds == {ExplicitLevel}:
        from fq_env.explicit import ExplicitEngine

        return ExplicitEngine(levels, n, **options)
    if kinds == {BlindLevel}:
        from fq_env.blind import BlindEngine

        return BlindEngine(levels, n, **options)
    return Engine(levels, n, **options)


class Engine:
    """n environments in one block of memory.

    Args:
        levels: a level (number, path, `Level`), or one for each environment.
        n: environments.
        exposure: `hidden`, `partial`, `full`; None takes the (first) level's own.
        reward: `potential` (default), `sparse`, `makespan`, `conductor`.
        autoreset: `same_step`, `next_step`, `disabled`.
        split: instances that `reset()` draws: `train` (each environment has a stream of its own), `validation`, `test`
            (environment i plays instances i, i + n, i + 2 n, ...).
        threads: kernel threads; above 1 a parallel twin of the loop is compiled.
        max_episode_steps: None takes the level's own step limit.
        seed: of the train streams.
        final: with `same_step`, the last observation of an episode goes to `final_obs` when it was `truncated` (a learner
            needs it to bootstrap) or `always`.

    Buffers (live: every step rewrites what may have changed, so they are only to be read): `obs` (n, 512) float32, `masks`
    (n, 128) bool, `rewards` (n,) float64, `terminated`, `truncated` (n,) bool, `final_obs`, `final_masks` (rows of
    environments that ended in the last step, see `final`), `episodes` (n,) records of the last finished episode.

    Raises:
        FQError: an unknown level, split, exposure, reward or autoreset mode.
    """

    block_type = Block

    def __init__(
        self,
        levels: int | str | Path | Level | Sequence[int | str | Path | Level],
        n: int,
        *,
        exposure: str | None = None,
        reward: str = "potential",
        autoreset: str = "same_step",
        split: str = "train",
        threads: int = 1,
        max_episode_steps: int | None = None,
        seed: int | None = None,
        final: str = "truncated",
    ) -> None:
        several = isinstance(levels, Sequence) and not isinstance(levels, str)
        given: Sequence[Any] = levels if isinstance(levels, Sequence) and several else [levels]
        chosen = [load_level(x) for x in given]
        if n < 1 or (several and len(chosen) != n):
            raise FQError(f"n is {n}; it must be at least 1, and {len(chosen)} if that many levels are given")
        if threads < 1:
            raise FQError(f"threads is {threads}; it must be at least 1")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise FQError(f"max_episode_steps is {max_episode_steps}; it must be at least 1")
        unique = list({id(level): level for level in chosen}.values())
        self.n, self.threads, self.unique = n, threads, unique
        self.block = self.block_type(unique)
        self._templates = [self.block.template(level) for level in unique]
        self._levels = np.concatenate([level_record(v, *t) for v, t in zip(unique, self._templates, strict=True)])
        self._tables = [write_workflow(self._levels[k : k + 1], level) for k, level in enumerate(unique)]
        self.memory = aligned(n * self.block.stride).reshape(n, self.block.stride)
        self.obs = np.zeros((n, N_OBSERVATION), np.float32)
        self.masks = np.zeros((n, N_ACTIONS), bool)
        self.rewards = np.zeros(n)
        self.terminated, self.truncated = np.zeros(n, bool), np.zeros(n, bool)
        self.final_obs, self.final_masks = np.zeros_like(self.obs), np.zeros_like(self.masks)
        self.episodes = np.zeros(n, EPISODE)
        self._actions = np.zeros(n, np.int64)
        self._reset = np.zeros(n, bool)
        self._split, self._instance = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.split = split
        exposure = exposure or chosen[0].exposure
        self._engine = np.zeros(1, ENGINE)
        e = self._engine
        for name, array in (
            ("memory", self.memory), ("levels", self._levels), ("actions", self._actions), ("obs", self.obs),
            ("masks", self.masks), ("rewards", self.rewards), ("terminated", self.terminated),
            ("truncated", self.truncated), ("final_obs", self.final_obs), ("final_masks", self.final_masks),
            ("episodes", self.episodes), ("reset", self._reset), ("split", self._split), ("instance", self._instance),
        ):  # fmt: skip
            e[name] = array.ctypes.data
        e["n"], e["stride"], e["max_steps"] = n, self.block.stride, max_episode_steps or 0
        e["autoreset"] = _choice("autoreset", autoreset, AUTORESETS)
        e["reward"] = _choice("reward", reward, REWARDS)
        e["final"] = _choice("final", final, ("truncated", "always"))
        e["exposure"] = _choice("exposure", exposure, EXPOSURES)
        _choice("split", split, SPLITS)
        self._scratch: np.ndarray | None = None  # one clone and one mask for each environment
        self.means = np.zeros((0, N_ACTIONS))
        self._address = e.ctypes.data
        self._obs_address = e["obs"]
        self._worlds = self._views(self.block.pit_size, WORLD)
        self._hots = self._views(0, state.PIT)
        for i, level in enumerate(chosen if several else chosen * n):
            row = self.memory[i]
            self.block.hot(row)["size"] = self.block.pit_size
            world = self.block.hidden(row)
            for name, offset in self.block.world.items():
                world[name] = offset
            world["level"] = world["next_level"] = next(k for k, u in enumerate(unique) if u is level)
        kernel = kernels()[0]
        self._all: Any = kernel.engine
        if threads > 1:
            import numba

            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            self._all = kernel.engine_parallel
        kernel.engine(self._address, RESET)  # nothing is asked to reset: this compiles or loads the kernel
        self._compiled: Any = next(iter(kernel.engine.overloads.values()))
        # Past Numba's dispatcher, which finds out at every call that two integers are two integers.
        self._enter = self._compiled.entry_point
        self.seed(seed)

    def step_one(self, action: Any) -> int:
        """`step` of an engine with n = 1: one action, and whether the episode ended."""
        self._actions[0] = action
        return int(self._enter(self._address, STEP))

    def __reduce__(self) -> Any:
        raise FQError("an engine cannot be copied or pickled: its records hold addresses; make a new one, or use clone(i)")

    def renew_obs(self) -> np.ndarray:
        """Gives the observation buffer away, (n, 512) float32, and takes a new one: a caller that keeps it need not copy.

        Every row of the new buffer is written by the next full `reset` or `step`, and not before.
        """
        old, self.obs = self.obs, np.empty_like(self.obs)
        self._obs_address[0] = data_address(self.obs)
        self._engine["fresh"] = 1
        return old

    def _views(self, start: int, dtype: np.dtype[Any]) -> np.ndarray:
        """One record per environment, (n,) strided over the block."""
        flat = self.memory.reshape(-1)
        return np.ndarray((self.n,), dtype, buffer=flat.data, offset=start, strides=(self.block.stride,))

    @property
    def playing(self) -> np.ndarray:
        """The level that each environment plays, (n,) int64: its number in `unique`, the engine's levels in order."""
        return self._worlds["level"].copy()

    @property
    def levels(self) -> list[Level]:
        """The level that each environment plays."""
        return [self.unique[k] for k in self._worlds["level"]]

    def assign(self, levels: np.ndarray) -> None:
        """From its next reset on environment i plays `unique[levels[i]]`; `levels` is (n,) integers.

        Raises:
            FQError: there is no such level, or the wrong number of them.
        """
        levels = np.asarray(levels)
        if levels.shape != (self.n,) or levels.dtype.kind not in "iu" or not np.isin(levels, range(len(self.unique))).all():
            raise FQError(f"levels is {levels!r}; it must be {self.n} whole numbers between 0 and {len(self.unique) - 1}")
        self._worlds["next_level"] = levels

    def expose(self, exposure: str) -> None:
        """From its next reset on each environment shows this exposure. Raises FQError for an unknown one."""
        self._engine["exposure"] = _choice("exposure", exposure, EXPOSURES)

    @property
    def phi0(self) -> np.ndarray:
        """The potential at the start of each running episode, (n,) float64."""
        return self._worlds["phi0"].copy()

    @property
    def instance_seeds(self) -> np.ndarray:
        """The seed of each running episode's instance, (n,) uint64."""
        return self._worlds["instance_seed"].copy()

    @property
    def done_idx(self) -> np.ndarray:
        """Environments whose episode ended in the last step, int64."""
        return np.flatnonzero(self.terminated | self.truncated)

    def seed(self, seed: int | None) -> None:
        """Gives every environment a train stream of its own, used from its next reset on."""
        if seed is not None and (not isinstance(seed, int | np.integer) or seed < 0):
            raise FQError(f"seed is {seed!r}; it must be a whole number that is not negative")
        streams = np.random.SeedSequence(seed).generate_state(self.n, np.uint64)
        self._worlds["train_stream"] = streams
        self._worlds["episode"] = 0

    def seed_one(self, i: int, seed: int) -> None:
        """A train stream for environment i alone, equal to that of a single environment with this seed."""
        self._worlds["train_stream"][i] = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self._worlds["episode"][i] = 0

    def reset(self, indices: Any = None, *, split: str | None = None, instances: int | Sequence[int] | None = None) -> None:
        """Begins new episodes; the arguments are those of `ask`."""
        self.ask(indices, split=split, instances=instances)
        self._run(RESET)

    def ask(self, indices: Any = None, *, split: str | None = None, instances: int | Sequence[int] | None = None) -> None:
        """Notes what the kernel's resets begin from now on.

        Args:
            indices: environments to reset; None means all.
            split: `train`, `validation` or `test`; None takes the engine's own.
            instances: instance numbers of that split (>= 0), one for each of `indices`; None draws the next of the train
                stream, or i for environment i in the other splits.
        """
        code = _choice("split", split if split is not None else self.split, SPLITS)
        chosen = np.arange(self.n) if indices is None else np.atleast_1d(np.asarray(indices, np.int64))
        if instances is None:
            numbers = np.full(len(chosen), -1) if code == 0 else chosen
        else:
            numbers = np.atleast_1d(np.asarray(instances))
            if numbers.shape != chosen.shape or numbers.dtype.kind not in "iu" or (numbers < 0).any():
                raise FQError(f"instance is {instances!r}; it must be {len(chosen)} whole number(s), none negative")
        self._reset[:] = False
        self._reset[chosen] = True
        self._split[chosen], self._instance[chosen] = code, numbers

    def _run(self, operation: int) -> int:
        return int(self._all(self._address, operation))

    def step(self, actions: np.ndarray) -> int:
        """Every environment takes its action, (n,) integers; returns how many episodes ended."""
        self._actions[:] = actions
        return int(self._all(self._address, STEP))

    def play(self, player: Player, indices: Any = None) -> None:
        """The running episodes are played to their end by a player that is not trained."""
        self._seat(player, indices)
        self._run(PLAY)

    def advise(self, player: Player, indices: Any = None) -> np.ndarray:
        """What the player would do now, (n,) int64; only the rows of `indices` are new.

        A player that looks ahead leaves the mean total of each legal action in `means` (n, 128) float64, unless only one is
        legal; the other entries mean nothing. What a level's `lookahead_width` leaves out has the least mean of what it tried.
        The rows of `obs` and `masks` may be overwritten.
        """
        self._seat(player, indices)
        self._run(ADVISE)
        return self._actions.copy()

    def fork(self, source: Engine, rows: np.ndarray, futures: np.ndarray) -> None:
        """The first len(rows) environments become those at `rows` of `source` (an engine of the same levels), from now on
        in other futures: equal numbers in `futures` (k,) int64 mean the same one for copies of the same environment."""
        k = len(rows)
        self.memory[:k] = source.memory[rows]
        self.terminated[:k] = self.truncated[:k] = False
        self._instance[:k] = futures
        self._worlds["pending"][k:] = 1  # the others have ended: a step leaves them as they are
        self._reset[:] = False
        self._reset[:k] = True
        self._run(FORK)

    def _seat(self, player: Player, indices: Any) -> None:
        e = self._engine
        e["rule"], e["theta"], e["preferred"], e["rollouts"] = player.code, player.theta, player.variant, player.rollouts
        self._weights = np.ascontiguousarray(np.zeros(N_WEIGHTS) if player.weights is None else player.weights, np.float64)
        if self._weights.shape != (N_WEIGHTS,):
            raise FQError(f"weights have shape {self._weights.shape}; a calibrated rule has ({N_WEIGHTS},)")
        e["weights"] = self._weights.ctypes.data
        if player.rollouts > 0 and self._scratch is None:
            self._scratch = aligned(self.n * (self.block.stride + N_ACTIONS))
            self.means = np.zeros((self.n, N_ACTIONS))
            e["scratch"], e["means"] = self._scratch.ctypes.data, self.means.ctypes.data
        self._reset[:] = indices is None
        if indices is not None:
            self._reset[indices] = True

    def clone(self, i: int) -> bytes:
        """The whole memory of environment i."""
        return self.memory[i].tobytes()

    def restore(self, i: int, data: bytes) -> None:
        """Puts a clone back (into an engine of the same levels); observation and mask follow with the next step."""
        if len(data) != self.block.stride:
            raise FQError(f"the clone has {len(data)} bytes; an environment of this engine has {self.block.stride}")
        self.memory[i] = np.frombuffer(data, np.uint8)

    def pit_view(self, i: int) -> dict[str, Any]:
        """Environment i in readable form: clock (s), status, pools, copies, tasks, calls. Built in Python, slow."""
        from fq_env.view import pit_view

        return pit_view(self, i)

"""Checkpoints between two rollouts: all that the rest of a training depends on, in one file that is whole or absent.

The file is stable-baselines3's own zip (any of its loaders reads it) with two more members: `resume.json` and `resume.npz`.
Beside the network and the optimiser they hold the environments' memory, every random state and what the callback
remembers, so that a training that goes on from it ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.save_util import load_from_zip_file

from experiments.errors import ExperimentError
from experiments.files import write_with
from fq_env.errors import FQError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

    from fq_env.sb3 import FunctionQuestVecEnv

FACTS, ARRAYS = "resume.json", "resume.npz"
FORMAT = 1
# Attributes of a learner that this module writes itself, or that the next rollout makes anew.
_OWN = ("_last_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer")


def model_bytes(model: BaseAlgorithm) -> bytes:
    """The learner as stable-baselines3 saves it (network, optimiser, settings), without what lies around it."""
    zipped = io.BytesIO()
    model.save(zipped, exclude=_OWN)
    return zipped.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes atomically; an OSError leaves what was there."""
    write_with(path, lambda temporary: temporary.write_bytes(data))


def save(path: Path, model: OnPolicyAlgorithm, env: FunctionQuestVecEnv, memory: dict[str, Any]) -> None:
    """Writes a checkpoint; to be called between an update and the next rollout.

    Args:
        memory: what the callback remembers, as JSON; no NaN.

    Raises:
        OSError: it cannot be written; the one before it is left as it was.
    """
    sampler: np.random.Generator | None = getattr(model, "sampler", None)
    facts = {
        "format": FORMAT,
        "frames": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": list(model.ep_info_buffer or ()),
        "successes": list(model.ep_success_buffer or ()),
        "random": {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "sampler": None if sampler is None else sampler.bit_generator.state,
        },
        "memory": memory,
    }
    arrays: dict[str, Any] = env.state() | {
        "episode_starts": model._last_episode_starts,
        "torch": torch.get_rng_state().numpy(),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    zipped = io.BytesIO(model_bytes(model))
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(FACTS, json.dumps(facts, allow_nan=False, default=_plain))
        archive.writestr(ARRAYS, packed.getvalue())
    write_bytes(path, zipped.getvalue())


def _plain(value: Any) -> Any:
    """NumPy's arrays and scalars as JSON."""
    return value.tolist()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole."""

    path: Path
    parameters: dict[str, Any]
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def frames(self) -> int:
        """After how many frames it was made."""
        return int(self.facts["frames"])

    @property
    def memory(self) -> dict[str, Any]:
        """What the callback remembered."""
        found: dict[str, Any] = self.facts["memory"]
        return found

    def restore(self, model: OnPolicyAlgorithm, env: FunctionQuestVecEnv, same_world: bool) -> None:
        """Puts everything back into a learner and environments that were made from the same configuration.

        Args:
            same_world: False if the simulation or the level has changed since; then the environments' memory means
                nothing any more, and they begin new episodes, other ones than those already played.

        Raises:
            ExperimentError: the checkpoint does not fit.
        """
        facts, arrays = self.facts, self.arrays
        try:
            model.set_parameters(self.parameters, exact_match=True, device="cpu")
            model.num_timesteps, model._n_updates = self.frames, int(facts["updates"])
            if same_world:
                seen = arrays["obs" if "obs" in arrays else "last_obs"]  # the name of before
                env.set_state(arrays | {"obs": seen})
                model._last_obs = seen.copy()
                model._last_episode_starts = arrays["episode_starts"].copy()
            else:
                env.seed(int(np.random.SeedSequence([model.seed or 0, self.frames]).generate_state(1)[0]))
                model._last_obs = env.reset()
                model._last_episode_starts = np.ones(env.num_envs, bool)
            model.ep_info_buffer = deque(facts["episodes"], model._stats_window_size)
            model.ep_success_buffer = deque(facts["successes"], model._stats_window_size)
            states = facts["random"]
            version, words, gauss = states["python"]
            random.setstate((version, tuple(words), gauss))
            np.random.set_state(states["numpy"])
            torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
            if states["sampler"] is not None:
                model.sampler.bit_generator.state = states["sampler"]  # type: ignore[attr-defined]
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, FQError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExperimentError(
                f"{self.path}: does not fit the learner of this version ({reason}); train the run anew"
            ) from None


def frames_of(path: Path) -> int:
    """After how many frames the checkpoint was made; 0 if there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return int(json.loads(archive.read(FACTS))["frames"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return 0


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks it whole. Raises ExperimentError if it is broken or none."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(FACTS))
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']}, this version writes {FORMAT}")
            with np.load(io.BytesIO(archive.read(ARRAYS)), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        _, parameters, _ = load_from_zip_file(path, load_data=False, device="cpu")
        return Checkpoint(path, parameters, facts, arrays)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperimentError(f"{path}: is no whole checkpoint ({reason}); train the run anew") from None

"""What one environment hands out belongs to whoever holds it, although its memory is used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import fq_env
from fq_env.env import FunctionQuestEnv
from pit.layout import FAILED, SKIP, SOLVED


def steps(env: gymnasium.Env, count: int, seen: Callable[[int, np.ndarray, np.ndarray], None]) -> None:
    """`count` random legal steps; `seen` gets the number, observation and mask of each, resets included, and may keep them."""
    rng, done = np.random.default_rng(0), True
    for t in range(count):
        if done:
            obs, info = env.reset(options={"split": "test", "instance": t} if t % 3 == 0 else None)
            done = False
        else:
            obs, _, terminated, truncated, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
            done = terminated or truncated
        seen(t, obs, info["action_mask"])


KEEPERS: dict[str, Callable[[np.ndarray], Any]] = {
    "the array": lambda array: array,
    "a view of a part": lambda array: array[3:].reshape(1, -1)[:, ::2],
    "a memoryview": memoryview,
    "a tensor": lambda array: torch.from_numpy(array).numpy(),
    "a list's only item": lambda array: [array],
}


@pytest.mark.parametrize("every", [1, 3, 7, 50])
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_what_somebody_holds_is_never_written_again(keep, every):
    kept: list[tuple[Any, bytes]] = []

    def seen(t: int, obs: np.ndarray, mask: np.ndarray) -> None:
        if t % every == 0:
            kept.extend((keep(array), np.array(keep(array)).tobytes()) for array in (obs, mask))
        if len(kept) > 60:
            del kept[: len(kept) // 2]  # some are let go, others not

    steps(gymnasium.make(fq_env.env_id(1)), 400, seen)
    assert kept
    for held, then in kept:
        assert np.array(held).tobytes() == then


def test_the_memory_of_what_nobody_holds_is_used_again():
    addresses: set[int] = set()
    steps(FunctionQuestEnv(1), 300, lambda t, obs, mask: addresses.add(obs.__array_interface__["data"][0]))
    assert len(addresses) <= 4


def test_an_array_whose_flags_were_changed_is_not_handed_out_again():
    def seen(t: int, obs: np.ndarray, mask: np.ndarray) -> None:
        for array in (obs, mask):
            assert array.flags.writeable and array.flags.c_contiguous and array.dtype in (np.float32, np.bool_)
            assert array.shape in ((512,), (128,))
            array.flags.writeable = False

    steps(FunctionQuestEnv(1), 100, seen)


def test_a_mask_that_was_edited_changes_nothing_that_is_legal():
    env = FunctionQuestEnv(1)

    def seen(t: int, obs: np.ndarray, mask: np.ndarray) -> None:
        then = mask.copy()
        mask[:], obs[:] = False, 7
        np.testing.assert_array_equal(env.action_masks(), then)
        mask[:] = then

    steps(env, 100, seen)


def test_giving_up_is_worse_than_any_way_to_the_end() -> None:
    """Under the makespan reward, too: who skips what the goal needs has the horizon's time on its account."""
    env, gave_up = FunctionQuestEnv(4, reward="makespan"), 0
    for instance in range(12):
        returns, status = [], []
        for skips in (True, False):
            _, info = env.reset(options={"split": "train", "instance": instance})
            total, over = 0.0, False
            while not over:
                legal = [int(action) for action in np.flatnonzero(info["action_mask"])]
                wanted = [action for action in legal if (action == SKIP) == skips]
                _, reward, terminated, truncated, info = env.step((wanted or legal)[0])
                total, over = total + reward, terminated or truncated
            returns.append(total)
            status.append(info["status"])
        assert status[1] == SOLVED
        if status[0] == FAILED:
            gave_up += 1
            assert returns[0] < returns[1]
    assert gave_up > 6

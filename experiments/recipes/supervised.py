"""The supervised phase: the policy learns the teacher's decisions step by step, its value the returns that followed.

Lookahead knows true means, so its choices cannot all be told from what the policy sees: to agree with them is to guess. But
what it expects of every action has, averaged over all that looks alike, the mean that the policy should act by.
`target=expected` raises the policy's own mean of these; `weighted` and `chosen` learn the choices, `weighted` those more that
matter more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.fast_ppo.frames import Frames
from experiments.fast_ppo.imitation import Examples, Imitation

if TYPE_CHECKING:
    from experiments.fast_ppo import FastPPO
    from experiments.recipes.settings import SupervisedConfig
    from experiments.recipes.verifier import Replay

HELD_OUT = 0x4E1D  # tells the random stream of this choice from others of the same seed
LIGHTEST, HEAVIEST = 0.1, 4.0  # weights of steps, in units of the mean advantage


def weights_of(advantages: np.ndarray, by_advantage: bool) -> np.ndarray:
    """The weight of agreement in each step (m,) float32, mean about 1: its advantage in units of the mean one, within
    `LIGHTEST` and `HEAVIEST`; 1 where no advantage is known, or everywhere."""
    known = np.isfinite(advantages)
    if not by_advantage or not known.any():
        return np.ones(len(advantages), np.float32)
    mean = max(float(advantages[known].mean()), 1e-9)
    scaled = np.where(known, np.nan_to_num(advantages) / mean, 1.0)
    return np.clip(scaled, LIGHTEST, HEAVIEST).astype(np.float32)


def gathered(replays: Sequence[Replay], target: str) -> Examples:
    """The kept episodes of some replays as one set of examples for a `target`; episodes are numbered through.

    What actions are expected to bring is told in units of its spread, replay by replay, so that levels of any scale count
    alike.
    """
    sizes = [int(np.isin(r.examples.episodes, r.kept).sum()) for r in replays]
    ladder = replays[0].examples.frames.ladder
    whole = Frames(max(1, sum(sizes)), ladder)
    parts: list[tuple[np.ndarray, ...]] = []
    episode = score = 0
    for r in replays:
        of = r.examples
        chosen = np.flatnonzero(np.isin(of.episodes, r.kept))
        whole.take(of.frames, chosen)
        firsts = of.firsts[chosen] if target == "expected" else np.full(len(chosen), -1)
        firsts = np.where(firsts >= 0, firsts + score, -1)
        weights = weights_of(r.advantages[chosen], target == "weighted")
        parts.append((of.actions[chosen], weights, of.returns[chosen], of.episodes[chosen] + episode, firsts, in_spreads(of)))
        episode += len(r.verdicts)
        score += len(of.expected)
    return Examples(whole, *(np.concatenate(x) for x in zip(*parts, strict=True)))


def in_spreads(of: Examples) -> np.ndarray:
    """`expected` divided by the root of its mean sum of squares per frame."""
    known = max(1, int((of.firsts >= 0).sum()))
    spread = float(np.sqrt(np.square(of.expected, dtype=np.float64).sum() / known))
    return of.expected / np.float32(max(spread, 1e-9))


def learn(
    model: FastPPO,
    examples: Examples,
    cfg: SupervisedConfig,
    seed: int,
    rng: np.random.Generator,
    report: Callable[[int, dict[str, float]], None],
) -> dict[str, Any]:
    """Epochs until the held-out episodes say that it is enough; the model keeps its best weights and a fresh Adam.

    Args:
        seed: decides which episodes are held out; one that is held out stays so when others are added behind it.
        rng: of the order of frames.
        report: called after each epoch with its number and what was measured on the held-out episodes; may raise.

    Returns:
        `frames` learned from, `epochs` made, the `best` of them, and what it measured on the held-out episodes.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    held_out = _held_out(examples.episodes, cfg.held_out, seed)
    chosen, others = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    imitation, state = Imitation(model, examples, cfg.vf_coef, cfg.smoothing, cfg.ent_coef), model.policy.optimizer.state
    best, lowest, kept, measured = 0, np.inf, copy.deepcopy(model.policy.state_dict()), {}
    epoch = 0
    state.clear()
    while epoch < cfg.epochs and epoch - best < cfg.patience:
        rate = cfg.learning_rate * max(0.05, 1.0 - epoch / cfg.epochs)
        imitation.epoch(rng.permutation(chosen), cfg.batch_size, rate)
        epoch += 1
        found = imitation.measure(others)
        report(epoch, found)
        loss = found["loss"] + cfg.vf_coef * found["value_loss"]
        if loss < lowest:
            best, lowest, kept, measured = epoch, loss, copy.deepcopy(model.policy.state_dict()), found
    model.policy.load_state_dict(kept)
    state.clear()
    return {"frames": len(chosen), "epochs": epoch, "best": best, **measured}


def _held_out(episodes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which frames are of the episodes that are held out, bool; at least one episode is, and one is not."""
    numbers, where = np.unique(episodes, return_inverse=True)
    chances = np.random.default_rng([seed, HELD_OUT]).random(int(numbers[-1]) + 1)[numbers]
    low, high = np.sort(chances)[[0, -1]]
    chosen: np.ndarray = (chances < high) & ((chances < share) | (chances == low))
    return chosen[where]

"""Learning from examples with a `FastPPO`'s networks: epochs over stored frames of what a teacher did or expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.fast_ppo import kernels
from experiments.fast_ppo.frames import Frames

if TYPE_CHECKING:
    from experiments.fast_ppo.learner import FastPPO


@dataclass
class Examples:
    """Frames with what a teacher did in them, by frame.

    Attributes:
        actions: (m,) int64, the teacher's.
        weights: (m,) float32, of what is learned from each.
        returns: (m,) float32, what followed.
        episodes: (m,) int64, the number of the episode that it is of.
        firsts: (m,) int64, where `expected` of the frame's legal actions begins; -1 where it is not known.
        expected: float32, what each legal action is expected to bring, one behind the other, the smallest action first.
    """

    frames: Frames
    actions: np.ndarray
    weights: np.ndarray
    returns: np.ndarray
    episodes: np.ndarray
    firsts: np.ndarray
    expected: np.ndarray


class Imitation:
    """Epochs of a learner over examples.

    Args:
        vf_coef: weight of the value's squared error.
        smoothing: share of the cross-entropy's target that goes to all legal actions alike.
        ent_coef: weight of the entropy where it is known what each action is expected to bring.
    """

    def __init__(
        self, model: FastPPO, examples: Examples, vf_coef: float, smoothing: float = 0.0, ent_coef: float = 0.0
    ) -> None:
        self.model, self.examples = model, examples
        self.coefficients = (smoothing, ent_coef, vf_coef)
        self._sums = np.zeros(len(kernels.IMITATION_SUMS))

    def _gradients(self, batch: np.ndarray) -> None:
        net, of = self.model._net, self.examples
        order, ends = of.frames.batch(batch, net)
        net.forward()
        kernels.imitation(
            net.logits.numpy(), net.values.numpy()[:, 0], order, of.frames.words, net.ladder.places, net.ladder.heights, ends,
            of.actions, of.weights, of.returns, of.firsts, of.expected, *self.coefficients,
            net.d_logits.numpy(), net.d_values.numpy()[:, 0], self._sums,
        )  # fmt: skip

    def epoch(self, chosen: np.ndarray, batch_size: int, rate: float) -> None:
        """One pass over the frames `chosen` (k,), in this order, in steps of Adam.

        Raises:
            FloatingPointError: a gradient is not finite; the weights before it are kept.
        """
        model = self.model
        net = model._net
        net.read()
        for group in model.policy.optimizer.param_groups:  # networks without a backward pass of their own use torch's Adam
            group["lr"] = rate
        for start in range(0, len(chosen), batch_size):
            self._gradients(chosen[start : start + batch_size])
            net.backward()
            if not np.isfinite(net.step(rate, model.max_grad_norm)):
                net.write()
                raise FloatingPointError("a gradient was not finite in the supervised phase")
        net.write()

    def measure(self, chosen: np.ndarray) -> dict[str, float]:
        """Means over the frames `chosen` (k,), by weight (the value's error: by frame): `loss`, `value_loss`,
        `agreement` (the share in which the policy's first choice is the teacher's)."""
        net, total = self.model._net, np.zeros_like(self._sums)
        net.read()
        for start in range(0, len(chosen), net.rows):
            self._gradients(chosen[start : start + net.rows])
            total += self._sums
        loss, value_loss, agreement, weight = total.tolist()
        weight = max(weight, 1e-12)
        return {
            "loss": loss / weight,
            "value_loss": value_loss / max(1, len(chosen)),
            "agreement": agreement / weight,
        }

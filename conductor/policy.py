"""The policy network in NumPy: a few float32 matrix products into buffers that are made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pit.layout import N_ACTIONS, N_OBSERVATION


def tensor_shapes(layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an MLP with these hidden sizes, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = N_OBSERVATION
    for i, size in enumerate(layers):
        shapes[f"policy.{i}.weight"] = (size, width)
        shapes[f"policy.{i}.bias"] = (size,)
        width = size
    shapes["action.weight"] = (N_ACTIONS, width)
    shapes["action.bias"] = (N_ACTIONS,)
    return shapes


class Policy:
    """An MLP from an observation (512,) float32 to logits (128,) float32. Not for several threads: the buffers are shared."""

    def __init__(self, tensors: Mapping[str, np.ndarray], layers: Sequence[int], activation: str) -> None:
        """`tensors` as `tensor_shapes(layers)` names them; `activation` is `relu` or `tanh`."""
        names = [f"policy.{i}" for i in range(len(layers))] + ["action"]
        self._weights = [np.ascontiguousarray(tensors[f"{n}.weight"], np.float32) for n in names]
        self._biases = [np.array(tensors[f"{n}.bias"], np.float32) for n in names]
        self._buffers = [np.empty_like(b) for b in self._biases]
        self._relu = activation == "relu"
        self._masked = np.empty(N_ACTIONS, np.float32)

    def logits(self, obs: np.ndarray) -> np.ndarray:
        """Logits (128,) float32 of one observation (512,) float32; a buffer that the next call rewrites."""
        hidden = obs
        last = len(self._weights) - 1
        for i, (weight, bias, out) in enumerate(zip(self._weights, self._biases, self._buffers, strict=True)):
            np.dot(weight, hidden, out=out)
            out += bias
            if i < last:
                if self._relu:
                    np.maximum(out, 0.0, out=out)
                else:
                    np.tanh(out, out=out)
            hidden = out
        return hidden

    def act(self, obs: np.ndarray, mask: np.ndarray) -> int:
        """The legal action (mask (128,) bool) with the largest logit, the first of equals; -1 if one is not finite."""
        self._masked.fill(-np.inf)
        np.copyto(self._masked, self.logits(obs), where=mask)
        action = int(self._masked.argmax())
        return action if np.isfinite(self._masked[mask]).all() and mask[action] else -1

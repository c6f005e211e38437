"""The policy networks in NumPy: float32 matrix products into buffers that are made once, and little for an empty slot.

A kind of network is a spec (what a manifest says of it), its part of `tensor_shapes`, and a class. What stands here must know
nothing of how a policy was trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pit.layout import (
    N_ACTIONS,
    N_GLOBAL_ACTIONS,
    N_OBSERVATION,
    N_SLOT_FEATURES,
    N_SLOTS,
    N_VERBS,
    POOL_OFFSET,
    WAIT,
)

N_CONTEXT = N_OBSERVATION - POOL_OFFSET  # 112: the features of pools and globals
_ZERO = np.zeros((), np.float32)
_ILLEGAL = np.full(N_ACTIONS, -np.inf, np.float32)
Width = Annotated[int, Field(ge=1, le=4096)]
Tensors = Mapping[str, np.ndarray]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    activation: Literal["relu", "tanh"]


class MlpSpec(_Spec):
    """A flat network. `layers` are the hidden sizes; inputs (512) and outputs (128) are the Pit's."""

    kind: Literal["mlp"]
    layers: list[Width] = Field(max_length=8)


class SlotsSpec(_Spec):
    """One encoder that the slots share. `widths`: of an encoded slot, and of the summary of all."""

    kind: Literal["slots"]
    widths: list[Width] = Field(min_length=2, max_length=2)


NetworkSpec = Annotated[MlpSpec | SlotsSpec, Field(discriminator="kind")]


def tensor_shapes(network: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a network, in order. Weights are (out, in) as in `torch.nn.Linear`."""
    if isinstance(network, SlotsSpec):
        encoder, summary = network.widths
        return {
            "slot.weight": (encoder, N_SLOT_FEATURES),
            "context.weight": (encoder, N_CONTEXT),
            "context.bias": (encoder,),
            "encoder.weight": (encoder, encoder),
            "encoder.bias": (encoder,),
            "summary.weight": (summary, 2 * encoder + N_CONTEXT),
            "summary.bias": (summary,),
            "own.weight": (encoder, encoder),
            "shared.weight": (encoder, summary),
            "shared.bias": (encoder,),
            "verbs.weight": (N_VERBS, encoder),
            "verbs.bias": (N_VERBS,),
            "globals.weight": (N_GLOBAL_ACTIONS, summary),
            "globals.bias": (N_GLOBAL_ACTIONS,),
        }
    shapes: dict[str, tuple[int, ...]] = {}
    width = N_OBSERVATION
    for i, size in enumerate(network.layers):
        shapes[f"policy.{i}.weight"] = (size, width)
        shapes[f"policy.{i}.bias"] = (size,)
        width = size
    shapes["action.weight"] = (N_ACTIONS, width)
    shapes["action.bias"] = (N_ACTIONS,)
    return shapes


def make_policy(network: NetworkSpec, tensors: Tensors) -> Policy:
    """The policy of a spec; `tensors` as `tensor_shapes(network)` names them."""
    return Slots(network, tensors) if isinstance(network, SlotsSpec) else Mlp(network, tensors)


class Policy(ABC):
    """A network from an observation (512,) to logits (128,), float32. Not for several threads: its buffers are shared."""

    def __init__(self) -> None:
        self._zeros, self._masked = np.zeros(N_ACTIONS, np.float32), np.empty(N_ACTIONS, np.float32)

    @abstractmethod
    def logits(self, obs: np.ndarray) -> np.ndarray:
        """Logits (128,) float32 of one observation (512,) float32; a buffer that the next call rewrites."""

    @abstractmethod
    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        """Logits (k, 128) float32 of observations (k, 512) float32, a new array; equal to `logits` but for the last bits."""

    def act(self, obs: np.ndarray, mask: np.ndarray) -> int:
        """The legal action (mask (128,) bool) with the largest logit, the first of equals; -1 if any logit is not finite."""
        logits = self.logits(obs)
        if self._zeros.dot(logits) != 0.0:  # 0 x inf and 0 x nan are nan
            return -1
        np.copyto(self._masked, _ILLEGAL)
        np.copyto(self._masked, logits, where=mask)
        action = int(self._masked.argmax())
        return action if mask[action] else -1


def _activation(network: NetworkSpec) -> Callable[[np.ndarray], object]:
    """The activation, in place."""
    if network.activation == "relu":
        return lambda x: np.maximum(x, _ZERO, out=x)
    return lambda x: np.tanh(x, out=x)


def _columns(tensors: Tensors, *names: str) -> np.ndarray:
    """Layers side by side that read one input, (in + 1, out): the last row is their bias, for an input that ends with a 1."""
    layers = [np.vstack([tensors[f"{n}.weight"].T, tensors[f"{n}.bias"]]) for n in names]
    return np.ascontiguousarray(np.hstack(layers), np.float32)


class Mlp(Policy):
    """A flat network. Its input ends with the slots' features, so that the zeros behind the last slot in use are left out."""

    def __init__(self, network: MlpSpec, tensors: Tensors) -> None:
        super().__init__()
        self._activate = _activation(network)
        names = [f"policy.{i}" for i in range(len(network.layers))] + ["action"]
        self._weights = [_columns(tensors, n) for n in names]
        first = np.roll(self._weights[0], N_CONTEXT + 1, axis=0)  # pools, globals, the bias, then the slots
        self._input = np.ones(N_OBSERVATION + 1, np.float32)
        self._context, self._slots = self._input[:N_CONTEXT], self._input[N_CONTEXT + 1 :]
        self._counts = self._slots[::N_SLOT_FEATURES]
        ends = [N_CONTEXT + 1 + N_SLOT_FEATURES * k for k in range(N_SLOTS + 1)]
        self._used = [(self._input[:end], first[:end], self._input[end:]) for end in ends]
        hidden = [np.ones(width + 1, np.float32) for width in network.layers]  # each ends with the 1 of the next bias
        self._hidden = [(x[:-1], x, weight) for x, weight in zip(hidden, self._weights[1:], strict=True)]
        self._logits = np.empty(N_ACTIONS, np.float32)

    def logits(self, obs: np.ndarray) -> np.ndarray:
        self._context[:] = obs[POOL_OFFSET:]
        self._slots[:] = obs[:POOL_OFFSET]
        x, weight, rest = self._used[np.count_nonzero(self._counts)]
        if rest.dot(rest) != 0.0:  # the Pit fills slots from the first on, but the network is defined for all inputs
            x, weight, rest = self._used[-1]
        for out, then, following in self._hidden:
            np.dot(x, weight, out=out)
            self._activate(out)
            x, weight = then, following
        return np.dot(x, weight, out=self._logits)

    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        x = obs
        for weight in self._weights[:-1]:
            x = x @ weight[:-1] + weight[-1]
            self._activate(x)
        return x @ self._weights[-1][:-1] + self._weights[-1][-1]


class Slots(Policy):
    """One encoder that the slots share; an empty slot (its ready_count, feature 0, is 0) costs nothing.

    With x = a slot's features (25,), g = pools and globals (112,), f = the activation, and the names of the tensors:
    e = f(encoder f(slot x + context g)), for each slot in use; s = f(summary [mean of e, maximum of e, g]), both 0 if there is
    none; the 7 logits of a slot = verbs f(own e + shared s), 0 if it is empty; the 16 global logits = globals s.
    """

    def __init__(self, network: SlotsSpec, tensors: Tensors) -> None:
        super().__init__()
        self._activate = _activation(network)
        encoder, summary = network.widths
        pooled, seen = np.split(tensors["summary.weight"], [2 * encoder], axis=1)
        split = {**tensors, "seen.weight": seen, "seen.bias": tensors["summary.bias"]}
        plain = [tensors[f"{n}.weight"] for n in ("slot", "encoder", "own", "verbs")]
        self._slot, self._encoder, self._own, self._verbs, self._pooled = (
            np.ascontiguousarray(weight.T, np.float32) for weight in (*plain, pooled)
        )
        self._encoder_bias, self._verbs_bias = (np.array(tensors[f"{n}.bias"], np.float32) for n in ("encoder", "verbs"))
        self._from_context = _columns(split, "context", "seen")
        self._from_summary = _columns(split, "shared", "globals")

        self._input = np.ones(N_OBSERVATION + 1, np.float32)
        self._obs, self._context = self._input[:-1], self._input[POOL_OFFSET:]
        self._features = self._input[:POOL_OFFSET].reshape(N_SLOTS, N_SLOT_FEATURES)
        self._counts = self._features[:, 0]
        self._of_context = np.empty(encoder + summary, np.float32)
        self._to_slots, self._to_summary = self._of_context[:encoder], self._of_context[encoder:]
        self._pool = np.zeros(2 * encoder, np.float32)
        self._mean, self._highest = self._pool[:encoder], self._pool[encoder:]
        self._summary_1 = np.ones(summary + 1, np.float32)
        self._summary = self._summary_1[:-1]
        self._of_summary = np.empty(encoder + N_GLOBAL_ACTIONS, np.float32)
        self._to_members, self._to_globals = self._of_summary[:encoder], self._of_summary[encoder:]
        self._logits = np.empty(N_ACTIONS, np.float32)
        self._of_slots, self._of_globals = self._logits[:WAIT].reshape(N_SLOTS, N_VERBS), self._logits[WAIT:]
        widths = (N_SLOT_FEATURES, encoder, encoder, N_VERBS)
        x, hidden, encoded, verbs = (np.empty((N_SLOTS, width), np.float32) for width in widths)
        self._rows = [
            (x[:k], hidden[:k], encoded[:k], verbs[:k], np.full(k, 1 / max(k, 1), np.float32)) for k in range(N_SLOTS + 1)
        ]

    def logits(self, obs: np.ndarray) -> np.ndarray:
        activate = self._activate
        self._obs[:] = obs
        used = self._counts.nonzero()[0]
        x, hidden, encoded, verbs, share = self._rows[used.size]
        np.dot(self._context, self._from_context, out=self._of_context)
        if used.size:
            self._features.take(used, axis=0, out=x, mode="clip")
            np.dot(x, self._slot, out=hidden)
            np.add(hidden, self._to_slots, out=hidden)
            activate(hidden)
            np.dot(hidden, self._encoder, out=encoded)
            np.add(encoded, self._encoder_bias, out=encoded)
            activate(encoded)
            np.dot(share, encoded, out=self._mean)
            np.maximum.reduce(encoded, axis=0, out=self._highest)
        else:
            self._pool.fill(0.0)
        np.dot(self._pool, self._pooled, out=self._summary)
        np.add(self._summary, self._to_summary, out=self._summary)
        activate(self._summary)
        np.dot(self._summary_1, self._from_summary, out=self._of_summary)
        self._logits.fill(0.0)
        self._of_globals[:] = self._to_globals
        if used.size:
            np.dot(encoded, self._own, out=hidden)
            np.add(hidden, self._to_members, out=hidden)
            activate(hidden)
            np.dot(hidden, self._verbs, out=verbs)
            np.add(verbs, self._verbs_bias, out=verbs)
            self._of_slots[used] = verbs
        return self._logits

    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        activate, encoder = self._activate, len(self._mean)
        slots = obs[:, :POOL_OFFSET].reshape(len(obs), N_SLOTS, N_SLOT_FEATURES)
        used = slots[:, :, 0] != 0
        rows, places = used.nonzero()
        of_context = obs[:, POOL_OFFSET:] @ self._from_context[:-1] + self._from_context[-1]
        encoded = slots[rows, places] @ self._slot + of_context[rows, :encoder]
        activate(encoded)
        encoded = encoded @ self._encoder + self._encoder_bias
        activate(encoded)
        counts = used.sum(1)
        some = counts.nonzero()[0]
        pool = np.zeros((len(obs), 2 * encoder), np.float32)
        first = (counts.cumsum() - counts)[some]
        pool[some, :encoder] = np.add.reduceat(encoded, first) / counts[some, None].astype(np.float32)
        pool[some, encoder:] = np.maximum.reduceat(encoded, first)
        summary = pool @ self._pooled + of_context[:, encoder:]
        activate(summary)
        of_summary = summary @ self._from_summary[:-1] + self._from_summary[-1]
        members = encoded @ self._own + of_summary[rows, :encoder]
        activate(members)
        logits = np.zeros((len(obs), N_ACTIONS), np.float32)
        logits[:, :WAIT].reshape(len(obs), N_SLOTS, N_VERBS)[rows, places] = members @ self._verbs + self._verbs_bias
        logits[:, WAIT:] = of_summary[:, encoder:]
        return logits

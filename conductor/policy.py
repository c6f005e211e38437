"""The policy networks in float32: one decision at a time by a compiled kernel, many at once in NumPy.

A kind of network is a spec (what a manifest says of it), its part of `tensor_shapes`, a class, and a kernel in
`conductor.forward`. What stands here must know nothing of how a policy was trained.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from conductor.forward import N_CONTEXT, flat, shared
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

_ZERO = np.zeros((), np.float32)
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
    """A network from an observation (512,) to logits (128,), float32; safe from several threads."""

    _kernel: Callable[..., int]  # of `conductor.forward`

    def __init__(self, network: MlpSpec | SlotsSpec, tensors: Tensors, widths: Sequence[int]) -> None:
        """`widths`: as the kernel wants them."""
        self._t = {name: np.array(tensors[name], np.float32) for name in tensor_shapes(network)}
        self._tanh, self._widths = network.activation == "tanh", np.array(widths, np.int64)
        self._weights = np.concatenate([np.ascontiguousarray(part).ravel() for part in self._packed()])
        self._seen, self._mask = np.zeros(N_OBSERVATION, np.float32), np.zeros(N_ACTIONS, bool)
        self._logits = np.zeros(N_ACTIONS, np.float32)
        most = max(N_OBSERVATION, N_SLOTS * max(widths))
        self._one, self._other, self._values = (np.zeros(most, np.float32) for _ in range(3))
        self._places = np.zeros(most, np.int64)
        self._lock = threading.Lock()  # the buffers are shared
        self._forward()  # it may have to be compiled, and no decision should wait for that

    @abstractmethod
    def _packed(self) -> list[np.ndarray]:
        """The weights in the order in which the kernel reads them; a matrix is (in, out)."""

    def _forward(self) -> int:
        buffers = self._logits, self._one, self._other, self._values, self._places
        return self._kernel(self._seen, self._mask, self._widths, self._weights, self._tanh, *buffers)

    def logits(self, obs: np.ndarray) -> np.ndarray:
        """Logits (128,) float32 of one observation (512,) float32; a new array."""
        with self._lock:
            self._seen[:] = obs
            self._forward()
            return self._logits.copy()

    def act(self, obs: np.ndarray, mask: np.ndarray) -> int:
        """The legal action (mask (128,) bool) with the largest logit, the first of equals; -1 if any logit is not finite."""
        with self._lock:
            self._seen[:] = obs
            self._mask[:] = mask
            return self._forward()

    @abstractmethod
    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        """Logits (k, 128) float32 of observations (k, 512) float32, a new array; equal to `logits` but for the last bits."""

    def _layer(self, name: str, x: np.ndarray) -> np.ndarray:
        """A layer without its activation, of rows (k, in)."""
        return x @ self._t[f"{name}.weight"].T + self._t[f"{name}.bias"]

    def _activate(self, x: np.ndarray) -> np.ndarray:
        """The activation, in place."""
        return np.tanh(x, out=x) if self._tanh else np.maximum(x, _ZERO, out=x)


class Mlp(Policy):
    """A flat network."""

    _kernel = staticmethod(flat)

    def __init__(self, network: MlpSpec, tensors: Tensors) -> None:
        self._hidden = [f"policy.{i}" for i in range(len(network.layers))]
        super().__init__(network, tensors, [N_OBSERVATION, *network.layers, N_ACTIONS])

    def _packed(self) -> list[np.ndarray]:
        return [part for name in (*self._hidden, "action") for part in (self._t[f"{name}.bias"], self._t[f"{name}.weight"].T)]

    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        x = obs
        for name in self._hidden:
            x = self._activate(self._layer(name, x))
        return self._layer("action", x)


class Slots(Policy):
    """One encoder that the slots share; an empty slot (its ready_count, feature 0, is 0) costs nothing.

    With x = a slot's features (25,), g = pools and globals (112,), f = the activation, and the names of the tensors:
    e = f(encoder f(slot x + context g)), for each slot in use; s = f(summary [mean of e, maximum of e, g]), both 0 if there is
    none; the 7 logits of a slot = verbs f(own e + shared s), 0 if it is empty; the 16 global logits = globals s.
    """

    _kernel = staticmethod(shared)

    def __init__(self, network: SlotsSpec, tensors: Tensors) -> None:
        super().__init__(network, tensors, network.widths)

    def _packed(self) -> list[np.ndarray]:
        t = self._t
        pooled, seen = np.split(t["summary.weight"].T, [-N_CONTEXT])
        return [
            t["context.bias"], t["summary.bias"], np.hstack([t["context.weight"].T, seen]),
            t["slot.weight"].T,
            t["encoder.bias"], t["encoder.weight"].T,
            pooled,
            t["shared.bias"], t["shared.weight"].T,
            t["globals.bias"], t["globals.weight"].T,
            t["own.weight"].T,
            t["verbs.bias"], t["verbs.weight"].T,
        ]  # fmt: skip

    def logits_many(self, obs: np.ndarray) -> np.ndarray:
        t, layer, activate = self._t, self._layer, self._activate
        context, slots = obs[:, POOL_OFFSET:], obs[:, :POOL_OFFSET].reshape(len(obs), N_SLOTS, N_SLOT_FEATURES)
        used = slots[:, :, 0] != 0
        rows, places = used.nonzero()
        encoded = activate(slots[rows, places] @ t["slot.weight"].T + layer("context", context)[rows])
        encoded = activate(layer("encoder", encoded))
        counts = used.sum(1)
        some = counts.nonzero()[0]
        mean, highest = np.zeros((2, len(obs), encoded.shape[1]), np.float32)
        first = (counts.cumsum() - counts)[some]
        mean[some] = np.add.reduceat(encoded, first) / counts[some, None].astype(np.float32)
        highest[some] = np.maximum.reduceat(encoded, first)
        summary = activate(layer("summary", np.hstack([mean, highest, context])))
        members = activate(encoded @ t["own.weight"].T + layer("shared", summary)[rows])
        logits = np.zeros((len(obs), N_ACTIONS), np.float32)
        logits[:, :WAIT].reshape(len(obs), N_SLOTS, N_VERBS)[rows, places] = layer("verbs", members)
        logits[:, WAIT:] = layer("globals", summary)
        return logits

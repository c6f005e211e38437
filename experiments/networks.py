"""The networks behind `network=`: flat MLPs of two sizes, and `slots`, one encoder that the slots of an observation share.

In `slots` a slot is a member of a set: what is learned in one place holds in all, and moving a slot moves its logits with it.
Only slots in use are computed. The conductor computes the same in NumPy (`conductor.policy.Slots` has the formulas in short).
What stands here must know nothing of levels, runs and bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from experiments.config import TrainConfig
from pit.layout import N_GLOBAL_ACTIONS, N_OBSERVATION, N_SLOT_FEATURES, N_SLOTS, N_VERBS, POOL_OFFSET, WAIT

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
MLP = (64, 64)
SYMPHONY = {"pi": [512, 256, 128], "vf": [512, 256]}
SLOTS = (96, 96)
N_CONTEXT = N_OBSERVATION - POOL_OFFSET  # 112: the features of pools and globals


class Occupied(NamedTuple):
    """The slots in use, m of n observations, one after the other. A slot is empty if its ready_count, feature 0, is 0."""

    features: Tensor  # (m, 25) float32
    rows: Tensor  # (m,) int64, the observation
    places: Tensor  # (m,) int64, observation * 16 + slot
    counts: Tensor  # (n, 1) int64, at least 1
    context: Tensor  # (n, 112) float32, pools and globals


def occupied(obs: Tensor) -> Occupied:
    """What both towers read of observations (n, 512) float32."""
    slots = obs[:, :POOL_OFFSET].view(len(obs), N_SLOTS, N_SLOT_FEATURES)
    used = slots[:, :, 0] != 0
    rows, columns = used.nonzero(as_tuple=True)
    counts = used.sum(1, keepdim=True).clamp(min=1)
    return Occupied(slots[rows, columns], rows, rows * N_SLOTS + columns, counts, obs[:, POOL_OFFSET:])


class Tower(nn.Module):
    """Encodes each slot in its context, and all of them together: mean and maximum over the slots in use, 0 if there is none.

    Each encoded slot (m, encoder): e = f(slot x + context g + b), then f(encoder e + b). The summary (n, context):
    f(summary [mean, max, g] + b). g = pools and globals, f = the activation.
    """

    def __init__(self, widths: Sequence[int], activation: type[nn.Module]) -> None:
        """`widths`: of an encoded slot, and of the summary."""
        super().__init__()
        encoder, context = widths
        self.slot = nn.Linear(N_SLOT_FEATURES, encoder, bias=False)
        self.context = nn.Linear(N_CONTEXT, encoder)
        self.encoder = nn.Linear(encoder, encoder)
        self.summary = nn.Linear(2 * encoder + N_CONTEXT, context)
        self.activation = activation()

    def forward(self, seen: Occupied) -> tuple[Tensor, Tensor]:
        """The encoded slots (m, encoder) and the summary (n, context)."""
        f, rows = self.activation, seen.rows
        encoded = f(self.slot(seen.features) + self.context(seen.context).index_select(0, rows))
        encoded = f(self.encoder(encoded))
        nothing = encoded.new_zeros(len(seen.context), encoded.shape[1])
        mean = nothing.index_add(0, rows, encoded) / seen.counts
        highest = nothing.scatter_reduce(0, rows.unsqueeze(1).expand_as(encoded), encoded, "amax", include_self=False)
        return encoded, f(self.summary(torch.cat([mean, highest, seen.context], 1)))


class Latent(NamedTuple):
    """What the policy's head reads."""

    members: Tensor  # (m, encoder), each slot in use with the summary in mind
    places: Tensor  # (m,) int64, observation * 16 + slot
    summary: Tensor  # (n, context)


class Actor(Tower):
    """A tower, and each slot once more, in view of all of them: f(own e + shared summary + b)."""

    def __init__(self, widths: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__(widths, activation)
        encoder, context = widths
        self.own = nn.Linear(encoder, encoder, bias=False)
        self.shared = nn.Linear(context, encoder)

    def latent(self, seen: Occupied) -> Latent:
        """What `SlotsHead` reads."""
        encoded, summary = self(seen)
        members = self.activation(self.own(encoded) + self.shared(summary).index_select(0, seen.rows))
        return Latent(members, seen.places, summary)


class SlotsHead(nn.Module):
    """Logits (n, 128) of a `Latent`: 7 of each slot in use, 16 of the summary, 0 for an empty slot."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        encoder, context = widths
        self.verbs = nn.Linear(encoder, N_VERBS)
        self.globals = nn.Linear(context, N_GLOBAL_ACTIONS)

    def forward(self, latent: Latent) -> Tensor:
        logits = self.verbs(latent.members)
        empty = logits.new_zeros(len(latent.summary) * N_SLOTS, N_VERBS)
        slots = empty.index_copy(0, latent.places, logits).view(len(latent.summary), WAIT)
        return torch.cat([slots, self.globals(latent.summary)], 1)


class SlotsExtractor(nn.Module):
    """The two towers, with weights of their own, behind the names that stable-baselines3 gives its `MlpExtractor`."""

    def __init__(self, widths: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = widths[1]
        self.actor = Actor(widths, activation)
        self.critic = Tower(widths, activation)

    def forward(self, features: Tensor) -> tuple[Latent, Tensor]:
        seen = occupied(features)
        return self.actor.latent(seen), self.critic(seen)[1]

    def forward_actor(self, features: Tensor) -> Latent:
        """What `action_net` reads of observations (n, 512) float32."""
        return self.actor.latent(occupied(features))

    def forward_critic(self, features: Tensor) -> Tensor:
        """What `value_net` reads, (n, context)."""
        summary: Tensor = self.critic(occupied(features))[1]
        return summary


class _Slots:
    """Puts the `slots` network in the place of the MLPs of an actor-critic policy; `net_arch` = [encoder, context]."""

    def __init__(
        self, *args: Any, net_arch: Sequence[int] = SLOTS, activation_fn: type[nn.Module] = nn.ReLU, **kwargs: Any
    ) -> None:
        super().__init__(*args, net_arch=list(net_arch), activation_fn=activation_fn, **kwargs)  # type: ignore[call-arg]

    def _build_mlp_extractor(self) -> None:
        policy: Any = self
        policy.mlp_extractor = SlotsExtractor(policy.net_arch, policy.activation_fn)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        policy: Any = self
        policy.action_net = SlotsHead(policy.net_arch)
        if policy.ortho_init:
            policy.action_net.apply(partial(policy.init_weights, gain=0.01))
        policy.optimizer = policy.optimizer_class(policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)


class SlotsPolicy(_Slots, MaskableActorCriticPolicy):
    """`slots` for sb3-contrib's `MaskablePPO` and what derives from it."""


class UnmaskedSlotsPolicy(_Slots, ActorCriticPolicy):
    """`slots` for stable-baselines3's `PPO`."""


def policy_of(cfg: TrainConfig) -> tuple[str | type[Any], dict[str, Any]]:
    """The policy class (or its name) and the `policy_kwargs` of a checked configuration."""
    activation = ACTIVATIONS[cfg.activation]
    if cfg.network == "slots":
        policy = UnmaskedSlotsPolicy if cfg.algo == "ppo" else SlotsPolicy
        return policy, {"net_arch": list(cfg.net_arch or SLOTS), "activation_fn": activation}
    if cfg.network == "symphony":
        return "MlpPolicy", {"net_arch": SYMPHONY, "activation_fn": activation}
    widths = list(cfg.net_arch or MLP)
    return "MlpPolicy", {"net_arch": {"pi": widths, "vf": widths}, "activation_fn": activation}

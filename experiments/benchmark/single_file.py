"""A plain single-file PPO with masks, as people write it: torch's autograd, one loop, nothing clever; a contestant only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class SingleFilePPO:
    """PPO over a stable-baselines3 `VecEnv` with `action_masks`, with the losses of stock PPO. `learn(frames)` goes on."""

    def __init__(
        self, env: Any, *, pi: list[int], vf: list[int], n_steps: int, batch_size: int, n_epochs: int, learning_rate: float
    ) -> None:
        self.env, self.n_steps, self.batch_size, self.n_epochs = env, n_steps, batch_size, n_epochs
        inputs, actions = env.observation_space.shape[0], int(env.action_space.n)
        self.actor, self.critic = _tower([inputs, *pi, actions]), _tower([inputs, *vf, 1])
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, eps=1e-5)
        self.obs = torch.as_tensor(env.reset())

    def learn(self, frames: int) -> None:
        """Rollouts and updates until `frames` more frames have been seen."""
        for _ in range(max(1, frames // (self.n_steps * self.env.num_envs))):
            self._update(*self._rollout())

    @torch.no_grad()
    def _rollout(self) -> list[Tensor]:
        stored: list[list[Tensor]] = []
        for _ in range(self.n_steps):
            masks = torch.as_tensor(self.env.action_masks())
            log_p = self.actor(self.obs).masked_fill(~masks, -1e8).log_softmax(1)
            actions = torch.multinomial(log_p.exp(), 1)
            value = self.critic(self.obs).flatten()
            following, rewards, dones, _ = self.env.step(actions.flatten().numpy())
            row = [self.obs, masks, actions, log_p.gather(1, actions).flatten(), value]
            stored.append([*row, torch.as_tensor(rewards), torch.as_tensor(dones).float()])
            self.obs = torch.as_tensor(following)
        obs, masks, actions, log_probs, values, rewards, dones = (torch.stack(column) for column in zip(*stored, strict=True))
        following, carry = self.critic(self.obs).flatten(), torch.zeros(self.env.num_envs)
        advantages = torch.zeros_like(rewards)
        for t in range(self.n_steps - 1, -1, -1):
            alive = 1.0 - dones[t]
            carry = rewards[t] + alive * following - values[t] + 0.98 * alive * carry
            advantages[t], following = carry, values[t]
        return [x.flatten(0, 1) for x in (obs, masks, actions, log_probs, advantages, advantages + values)]

    def _update(self, obs: Tensor, masks: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, returns: Tensor) -> None:
        for _ in range(self.n_epochs):
            for rows in torch.split(torch.randperm(len(obs)), self.batch_size):
                log_p = self.actor(obs[rows]).masked_fill(~masks[rows], -1e8).log_softmax(1)
                ratio = (log_p.gather(1, actions[rows]).flatten() - old[rows]).exp()
                weight = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std() + 1e-8)
                policy_loss = -torch.min(weight * ratio, weight * ratio.clamp(0.8, 1.2)).mean()
                value_loss = (self.critic(obs[rows]).flatten() - returns[rows]).square().mean()
                entropy = -(log_p.exp() * log_p).sum(1).mean()
                self.optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.003 * entropy).backward()
                nn.utils.clip_grad_norm_(self.parameters, 0.5)
                self.optimizer.step()


def _tower(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

"""A stranger's PPO: one file, torch and Gymnasium alone, no masks, nothing of this house but an environment id.

It uses the vector environment as `gymnasium.make_vec` hands it out (autoreset NEXT_STEP) and an ordinary categorical
policy, as many single-file learners do. `train` returns the returns of all finished episodes in the order of their ends.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    """Separate tanh towers for the policy and the value."""

    def __init__(self, n_inputs: int, n_actions: int, width: int = 64) -> None:
        super().__init__()
        self.actor = nn.Sequential(
            nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, n_actions)
        )
        self.critic = nn.Sequential(
            nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2**0.5)
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.actor[-1].weight, 0.01)

    def evaluate(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and values of (k, inputs) observations and (k,) actions."""
        choice = Categorical(logits=self.actor(obs))
        return choice.log_prob(actions), choice.entropy(), self.critic(obs).squeeze(-1)


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, dones: torch.Tensor, last_value: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """Generalised advantage estimation over (steps, envs); `dones[t]` says that step t ended an episode."""
    result = torch.zeros_like(rewards)
    running = torch.zeros_like(last_value)
    for t in reversed(range(len(rewards))):
        alive = 1.0 - dones[t]
        following = last_value if t == len(rewards) - 1 else values[t + 1]
        delta = rewards[t] + gamma * following * alive - values[t]
        running = delta + gamma * lam * alive * running
        result[t] = running
    return result


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    obs: torch.Tensor,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantage: torch.Tensor,
    returns: torch.Tensor,
    *,
    epochs: int,
    batch: int,
) -> None:
    """The clipped policy-gradient update over flat (k, ...) tensors."""
    for _ in range(epochs):
        order = torch.randperm(len(obs))
        for start in range(0, len(obs), batch):
            rows = order[start : start + batch]
            log_probs, entropy, values = agent.evaluate(obs[rows], actions[rows])
            ratio = (log_probs - old_log_probs[rows]).exp()
            weight = (advantage[rows] - advantage[rows].mean()) / (advantage[rows].std() + 1e-8)
            policy_loss = -torch.min(weight * ratio, weight * ratio.clamp(0.8, 1.2)).mean()
            value_loss = 0.5 * (values - returns[rows]).square().mean()
            loss = policy_loss + 0.5 * value_loss - 0.01 * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def train(
    env_id: str,
    *,
    frames: int,
    n_envs: int = 64,
    n_steps: int = 32,
    epochs: int = 4,
    batch: int = 512,
    learning_rate: float = 2e-3,
    gamma: float = 1.0,
    lam: float = 0.95,
    seed: int = 0,
) -> np.ndarray:
    """Trains on `env_id` for about `frames` steps; the returns of all finished episodes, in order."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(env_id, num_envs=n_envs)
    n_inputs = int(np.prod(envs.single_observation_space.shape))
    agent = Agent(n_inputs, int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)
    obs = torch.zeros(n_steps, n_envs, n_inputs)
    actions = torch.zeros(n_steps, n_envs, dtype=torch.int64)
    log_probs, rewards, dones, values = (torch.zeros(n_steps, n_envs) for _ in range(4))
    returns, running = [], np.zeros(n_envs)
    now = torch.as_tensor(envs.reset(seed=seed)[0])
    for _ in range(max(1, frames // (n_envs * n_steps))):
        for t in range(n_steps):
            with torch.no_grad():
                choice = Categorical(logits=agent.actor(now))
                action = choice.sample()
                obs[t], actions[t], log_probs[t] = now, action, choice.log_prob(action)
                values[t] = agent.critic(now).squeeze(-1)
            following, reward, terminated, truncated, _ = envs.step(action.numpy())
            ended = terminated | truncated
            rewards[t] = torch.as_tensor(reward, dtype=torch.float32)
            dones[t] = torch.as_tensor(ended, dtype=torch.float32)
            running += reward
            returns += running[ended].tolist()
            running[ended] = 0.0
            now = torch.as_tensor(following)
        with torch.no_grad():
            last_value = agent.critic(now).squeeze(-1)
            advantage = advantages(rewards, values, dones, last_value, gamma, lam)
        flat = (x.flatten(0, 1) for x in (obs, actions, log_probs, advantage, advantage + values))
        update(agent, optimizer, *flat, epochs=epochs, batch=batch)
    envs.close()
    return np.array(returns)


if __name__ == "__main__":
    import fq_env  # noqa: F401  (registers the ids)

    torch.set_num_threads(1)
    history = train("FunctionQuest/Level-01-v0", frames=100_000)
    print(f"{len(history)} episodes: first 500 {history[:500].mean():.3f}, last 500 {history[-500:].mean():.3f}")

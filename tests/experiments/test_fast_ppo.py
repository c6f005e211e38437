"""The fast learner is stock PPO: the same losses, gradients, steps and advantages, on data of its own rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import nn

from experiments.fast_ppo import FastPPO, kernels
from experiments.fast_ppo.imitation import Examples, Imitation
from experiments.networks import SlotsPolicy
from fq_env.level import load_level
from fq_env.live import live_actions, live_columns
from fq_env.sb3 import make_sb3_env

N, STEPS = 64, 16
FRAMES = N * STEPS


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Watched(VecEnvWrapper):
    """Keeps what the environments gave, and lets a test spoil rewards and masks."""

    def __init__(self, env: Any, spoil_reward: float = 0.0, spoil_mask: bool | None = None) -> None:
        super().__init__(env)
        self.spoil_reward, self.spoil_mask = spoil_reward, spoil_mask
        self.steps: list[dict[str, Any]] = []

    def reset(self) -> Any:
        self.obs = self.venv.reset()
        return self.obs

    def step_wait(self) -> Any:
        masks, before = self.masks, self.obs
        self.obs, rewards, dones, infos = self.venv.step_wait()
        self.steps.append({"obs": before, "masks": masks, "rewards": rewards.copy(), "dones": dones, "infos": list(infos)})
        rewards[0] += self.spoil_reward
        return self.obs, rewards, dones, infos

    def env_method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.masks = self.venv.env_method(name, *args, **kwargs)[0]
        if self.spoil_mask is not None:
            self.masks[3] = self.spoil_mask
        return [self.masks]


def make(cls: type = FastPPO, level: int = 11, live: bool = False, widths: Any = (64, 64), **kwargs: Any) -> Any:
    kwargs = {"n_steps": STEPS, "batch_size": 256, "n_epochs": 2, "gamma": 1.0, "ent_coef": 0.01, "seed": 3, **kwargs}
    kwargs.setdefault("env", make_sb3_env(level, N, 5))
    if live:
        kwargs |= {"live_columns": live_columns(load_level(level)), "live_actions": live_actions(load_level(level))}
    policy: str | type = "MlpPolicy"
    if widths == "slots":
        policy, net_arch = SlotsPolicy, [48, 32]
    else:
        net_arch = {"pi": list(widths), "vf": list(widths)[:2]}
    policy_kwargs = {"net_arch": net_arch, "activation_fn": kwargs.pop("activation", nn.ReLU)}
    return cls(policy, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


def learned(rollouts: int = 2, **kwargs: Any) -> tuple[Any, Watched]:
    """A learner after some rollouts, the last of which is still in its buffer, and what the environments gave."""
    level = kwargs.get("level", 11)
    watched = Watched(make_sb3_env(level, N, 5, max_episode_steps=kwargs.pop("max_episode_steps", None)))
    model = make(env=watched, **kwargs)
    model.learn(rollouts * FRAMES)
    watched.steps = watched.steps[-STEPS:]
    return model, watched


def seen(watched: Watched, key: str) -> np.ndarray:
    return np.concatenate([step[key] for step in watched.steps])


def evaluate(model: Any, obs: np.ndarray, actions: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Values, log probabilities and entropies (n,) of a policy in float64, by autograd."""
    policy, log_p = model.policy.double(), log_probs(model, obs, masks)
    values = policy.value_net(policy.mlp_extractor(torch.from_numpy(obs).double())[1]).flatten()
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    return values, log_p.gather(1, torch.from_numpy(actions)[:, None]).flatten(), entropy


def test_gradients_towards_what_is_expected_are_those_of_autograd() -> None:
    """Where it is known what each legal action brings; every third frame has the teacher's action alone."""
    model, watched = learned(level=11, live=True, widths="slots", learning_rate=1e-2)
    rng = np.random.default_rng(0)
    obs, masks = seen(watched, "obs"), seen(watched, "masks")
    actions = (rng.random(masks.shape) * masks).argmax(axis=1)
    weights, counts = rng.random(FRAMES).astype(np.float32), masks.sum(axis=1)
    firsts, scores = np.cumsum(counts) - counts, rng.normal(size=int(counts.sum())).astype(np.float32)
    dense = np.zeros(masks.shape)
    dense[masks] = scores
    firsts[::3] = -1
    zero, none = np.zeros(FRAMES, np.float32), np.zeros(FRAMES, np.int64)
    examples = Examples(model.rollout_buffer.frames, actions, weights, zero, none, firsts, scores)
    batch = rng.permutation(FRAMES)[:256]
    imitation = Imitation(model, examples, vf_coef=0.0, ent_coef=0.3)
    imitation._gradients(batch)
    model._net.backward()
    measured = imitation.measure(batch)
    _, log_prob, entropy = evaluate(model, obs[batch], actions[batch], masks[batch])
    gain = (log_probs(model, obs[batch], masks[batch]).exp() * torch.from_numpy(dense[batch])).sum(dim=1)
    w, known = torch.from_numpy(weights[batch]).double(), torch.from_numpy(firsts[batch] >= 0)
    losses = -w * torch.where(known, gain + 0.3 * entropy, log_prob)
    model.policy.optimizer.zero_grad()
    losses.mean().backward()
    for link in model._net.links:
        if link.parameter.grad is not None:
            expected = link.part(link.parameter.grad).numpy()
            np.testing.assert_allclose(
                model._net.same(link.view, model._net.gradient).numpy(), expected, rtol=0, atol=1e-6
            )  # fmt: skip
    assert measured["loss"] == pytest.approx((losses.sum() / w.sum()).item(), rel=1e-5)


def log_probs(model: Any, obs: np.ndarray, masks: np.ndarray) -> torch.Tensor:
    """Log probabilities (n, 128) of all actions in float64, by autograd; about -1e8 where illegal."""
    policy = model.policy.double()
    latent = policy.mlp_extractor(torch.from_numpy(obs).double())[0]
    found: torch.Tensor = policy.action_net(latent).masked_fill(torch.from_numpy(~masks), -1e8).log_softmax(dim=1)
    return found


def divergence(model: Any, other: Any, obs: np.ndarray, masks: np.ndarray) -> torch.Tensor:
    """KL(model, other) of each row (n,), by autograd in float64."""
    log_p, log_q = (log_probs(m, obs, masks) for m in (model, other))
    return (log_p.exp() * (log_p - log_q.detach())).sum(dim=1)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "level, widths, activation",
    [(1, (64, 64), nn.ReLU), (11, (32,), nn.Tanh), (11, (96, 64, 32), nn.ReLU), (1, "slots", nn.ReLU), (11, "slots", nn.ReLU)],
)
@pytest.mark.parametrize("clip_vf", [None, 0.05])
@pytest.mark.parametrize("held", [False, True])
def test_losses_and_gradients_are_those_of_autograd(
    level: int, widths: Any, activation: Any, live: bool, clip_vf: float | None, held: bool
) -> None:
    model, watched = learned(level=level, live=live, widths=widths, activation=activation, learning_rate=1e-2)
    if held:  # to the policy as it began
        began, _ = learned(rollouts=0, level=level, live=live, widths=widths, activation=activation)
        model.hold_to(began.policy.state_dict(), coefficient=0.7, target=0.1, rate=0.5)
        model.anchor.look(model.rollout_buffer.frames)
    roll, net, sums = model.rollout_buffer, model._net, np.zeros(len(kernels.SUMS))
    batch = np.random.default_rng(0).permutation(FRAMES)[:256]
    model._gradient(batch, 0.1, -1.0 if clip_vf is None else clip_vf, sums)

    def of(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.ravel()[batch]).double()

    obs, masks = seen(watched, "obs")[batch], seen(watched, "masks")[batch]
    values, log_prob, entropy = evaluate(model, obs, roll.actions.ravel()[batch], masks)
    far = divergence(model, began, obs, masks).mean() if held else torch.zeros(())
    advantages = (of(roll.advantages) - of(roll.advantages).mean()) / (of(roll.advantages).std() + 1e-8)
    ratio = torch.exp(log_prob - of(roll.log_probs))
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(0.9, 1.1)).mean()
    moved = values - of(roll.values)
    predicted = values if clip_vf is None else of(roll.values) + moved.clamp(-clip_vf, clip_vf)
    value_loss = ((of(roll.returns) - predicted) ** 2).mean()
    model.policy.optimizer.zero_grad()
    (policy_loss + 0.5 * value_loss - 0.01 * entropy.mean() + 0.7 * far).backward()

    clipped = ((ratio - 1).abs() > 0.1).double().mean().item()
    assert clipped > 0.02  # there is something to clip
    assert not held or far.item() > 1e-3
    approximate = (ratio - 1 - ratio.log()).mean().item()
    expected = [policy_loss.item(), value_loss.item(), entropy.mean().item(), approximate, clipped, far.item()]
    np.testing.assert_allclose(sums / 256, expected, rtol=1e-5, atol=1e-6)
    for link in net.links:
        expected = link.part(link.parameter.grad).numpy()
        np.testing.assert_allclose(net.same(link.view, net.gradient).numpy(), expected, rtol=0, atol=1e-6)
    for link in net.links:
        link.put(link.parameter.grad, torch.zeros((), dtype=torch.float64))
    assert not any(parameter.grad.any() for parameter in model.policy.parameters())  # what is left out has no gradient


@pytest.mark.parametrize("level, widths, smoothing", [(1, (64, 64), 0.0), (11, "slots", 0.0), (11, "slots", 0.25)])
def test_gradients_of_imitation_are_those_of_autograd(level: int, widths: Any, smoothing: float) -> None:
    model, watched = learned(level=level, live=True, widths=widths, learning_rate=1e-2)
    rng = np.random.default_rng(0)
    obs, masks = seen(watched, "obs"), seen(watched, "masks")
    actions = (rng.random(masks.shape) * masks).argmax(axis=1)
    weights, returns = rng.random(FRAMES).astype(np.float32), rng.random(FRAMES).astype(np.float32)
    none, unknown = np.zeros(FRAMES, np.int64), np.full(FRAMES, -1)
    examples = Examples(
        model.rollout_buffer.frames, actions, weights, returns, none, unknown, np.zeros(0, np.float32)
    )  # fmt: skip
    imitation = Imitation(model, examples, vf_coef=0.3, smoothing=smoothing)
    batch = rng.permutation(FRAMES)[:256]
    imitation._gradients(batch)
    model._net.backward()
    measured = imitation.measure(batch[:200])
    values, log_prob, _ = evaluate(model, obs[batch], actions[batch], masks[batch])
    w, target = (torch.from_numpy(x[batch]).double() for x in (weights, returns))
    legal = torch.from_numpy(masks[batch])
    each = (log_probs(model, obs[batch], masks[batch]) * legal).sum(dim=1) / legal.sum(dim=1)
    log_prob = (1.0 - smoothing) * log_prob + smoothing * each
    model.policy.optimizer.zero_grad()
    (-(w * log_prob).mean() + 0.3 * ((values - target) ** 2).mean()).backward()
    for link in model._net.links:
        expected = link.part(link.parameter.grad).numpy()
        np.testing.assert_allclose(model._net.same(link.view, model._net.gradient).numpy(), expected, rtol=0, atol=1e-6)
    chosen = model.policy.float().predict(obs[batch], action_masks=masks[batch], deterministic=True)[0]
    some = slice(0, 200)
    assert measured["loss"] == pytest.approx((-(w * log_prob)[some].sum() / w[some].sum()).item(), rel=1e-5)
    assert measured["value_loss"] == pytest.approx(((values - target)[some] ** 2).mean().item(), rel=1e-5)
    agree = torch.from_numpy(chosen == actions[batch])[some].double()
    assert measured["agreement"] == pytest.approx(((w[some] * agree).sum() / w[some].sum()).item(), rel=1e-5)
    own, _ = model.first_choice(obs[batch], masks[batch])
    np.testing.assert_array_equal(own, chosen)


def test_one_step_is_stock_one() -> None:
    """The same rollout through stock `train`, in one batch: the same weights, the same Adam state, the same log."""
    fast, watched = learned(rollouts=1, batch_size=FRAMES, n_epochs=3)
    again, _ = learned(rollouts=0, batch_size=FRAMES, n_epochs=3)  # the same seed: the weights before that rollout
    stock = make(MaskablePPO, batch_size=FRAMES, n_epochs=3)
    stock.learn(0)
    stock.policy.load_state_dict(again.policy.state_dict())
    buffer, roll = (
        MaskableRolloutBuffer(STEPS, stock.observation_space, stock.action_space, "cpu", 0.95, 1.0, N),
        fast.rollout_buffer,
    )
    for t, step in enumerate(watched.steps):
        buffer.add(
            step["obs"], roll.actions[t], roll.rewards[t], roll.episode_starts[t], torch.from_numpy(roll.values[t]),
            torch.from_numpy(roll.log_probs[t]), action_masks=step["masks"],
        )  # fmt: skip
    buffer.advantages[:], buffer.returns[:], buffer.full = roll.advantages, roll.returns, True
    stock.rollout_buffer = buffer
    stock.train()
    for mine, theirs in zip(fast.policy.parameters(), stock.policy.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=0, atol=2e-6)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            a, b = fast.policy.optimizer.state[mine][name], stock.policy.optimizer.state[theirs][name]
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-7)
    mine, theirs = fast.logger.name_to_value, stock.logger.name_to_value
    for name in (key for key in theirs if key.startswith("train/")):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("live", [False, True])
def test_rollout_is_what_stock_would_have_stored(live: bool) -> None:
    """Legal actions, their log probabilities and values, and advantages with the bootstrap of truncated episodes."""
    model, watched = learned(rollouts=1, level=11, live=live, max_episode_steps=7, n_epochs=1, learning_rate=0.0)
    roll, actions = model.rollout_buffer, model.rollout_buffer.actions.ravel()
    obs, masks = seen(watched, "obs"), seen(watched, "masks")
    assert masks[np.arange(FRAMES), actions].all()
    values, log_prob, _ = evaluate(model, obs, actions, masks)
    np.testing.assert_allclose(roll.values.ravel(), values.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(roll.log_probs.ravel(), log_prob.detach().numpy(), atol=1e-5)
    buffer = MaskableRolloutBuffer(STEPS, model.observation_space, model.action_space, "cpu", model.gae_lambda, 1.0, N)
    starts, cut = np.ones(N, bool), 0
    for t, step in enumerate(watched.steps):
        rewards = step["rewards"]
        for i, info in enumerate(step["infos"]):
            if info.get("TimeLimit.truncated"):
                cut += 1
                rewards[i] += evaluate(model, info["terminal_observation"][None], actions[:1], masks[:1])[0].item()
        buffer.add(
            step["obs"], roll.actions[t], rewards, starts, torch.from_numpy(roll.values[t]),
            torch.from_numpy(roll.log_probs[t]), action_masks=step["masks"],
        )  # fmt: skip
        starts = step["dones"]
    assert cut > N
    last_values, _, _ = evaluate(model, watched.obs, actions[:N], masks[:N])
    buffer.compute_returns_and_advantage(last_values.detach(), starts)
    np.testing.assert_allclose(roll.advantages, buffer.advantages, atol=1e-5)
    np.testing.assert_allclose(roll.returns, buffer.returns, atol=1e-5)


def test_samples_follow_the_masked_softmax() -> None:
    rng = np.random.default_rng(0)
    draws, logits = 40_000, np.full((1, 128), 9.0, np.float32)
    legal = np.array([0, 5, 63, 64, 127])
    logits[0, legal] = [0.0, 1.0, -1.0, 2.0, -30.0]
    masks = np.zeros((1, 128), bool)
    masks[0, legal] = True
    words, actions, log_probs = np.zeros((1, 2), np.uint64), np.zeros(1, np.int64), np.zeros(1, np.float32)
    kernels.pack(masks, words)
    counts = np.zeros(128)
    expected = np.exp(logits[0, legal]) / np.exp(logits[0, legal]).sum()
    for u in rng.random((draws, 1), np.float32):
        kernels.sample(logits, np.zeros(1, np.int64), words, np.arange(128), 0, u, actions, log_probs)
        counts[actions[0]] += 1
        assert np.exp(log_probs[0]) == pytest.approx(expected[legal == actions[0]][0], rel=1e-5)
    assert counts.sum() == counts[legal].sum() == draws
    np.testing.assert_allclose(counts[legal] / draws, expected, atol=4 * np.sqrt(0.25 / draws))
    almost_one = np.nextafter(np.float32(1), np.float32(0), dtype=np.float32)
    kernels.sample(logits, np.zeros(1, np.int64), words, np.arange(128), 0, np.array([almost_one]), actions, log_probs)
    assert actions[0] in legal and np.isfinite(log_probs[0])


def weights(model: Any) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


def test_same_seed_same_weights_and_neighbours_share_nothing() -> None:
    runs = {}
    for name, seed in (("one", 3), ("same", 3), ("next", 4)):
        runs[name], _ = learned(level=1, seed=seed)
    np.testing.assert_array_equal(weights(runs["one"]), weights(runs["same"]))
    assert not np.intersect1d(weights(runs["one"]), weights(runs["next"])).size > 0.9 * weights(runs["one"]).size
    streams = [make(level=1, seed=seed).sampler.random(20_000) for seed in range(4)]
    assert np.unique(np.concatenate(streams)).size == 80_000


@pytest.mark.parametrize("live", [False, True])
def test_saved_model_is_plain(tmp_path: Path, live: bool) -> None:
    model, watched = learned(live=live)
    model.save(tmp_path / "model.zip")
    obs, masks = seen(watched, "obs"), seen(watched, "masks")
    mine, _ = model.predict(obs, action_masks=masks, deterministic=True)
    plain = MaskablePPO.load(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(plain.predict(obs, action_masks=masks, deterministic=True)[0], mine)
    plain.set_env(make_sb3_env(11, N, 5))
    plain.learn(FRAMES)  # stock goes on from here
    again = FastPPO.load(tmp_path / "model.zip", env=make_sb3_env(11, N, 5), device="cpu")
    before = weights(again)
    again.learn(FRAMES)
    assert (weights(again) != before).any()


def test_live_columns_change_nothing_but_rounding() -> None:
    whole, _ = learned(level=1)
    live, _ = learned(level=1, live=True)
    np.testing.assert_allclose(weights(live), weights(whole), atol=1e-4)
    assert len(live._net.ladder.columns) < 120 < len(whole._net.ladder.columns)


@pytest.mark.parametrize("level", [1, 11])
@pytest.mark.parametrize("exposure", ["hidden", "partial", "full"])
def test_what_is_declared_dead_is_dead(level: int, exposure: str) -> None:
    env = make_sb3_env(level, N, 5, exposure=exposure)
    columns, actions = live_columns(load_level(level), exposure), live_actions(load_level(level))
    rng, obs = np.random.default_rng(0), env.reset()
    used, chosen = np.zeros(512, bool), np.zeros(128, bool)
    for _ in range(150):
        masks = env.action_masks()
        used |= (obs != 0).any(axis=0)
        chosen |= masks.any(axis=0)
        obs, *_ = env.step((rng.random(masks.shape) * masks).argmax(axis=1))
    assert not (used & ~columns).any() and not (chosen & ~actions).any()
    if level == 1:  # small enough that random play shows nearly all
        assert columns.sum() < 1.4 * used.sum()


def test_target_kl_stops_the_epochs() -> None:
    model, _ = learned(target_kl=1e-7, n_epochs=5, learning_rate=1e-2)
    assert model._n_updates == 2  # one epoch of each of two updates


def test_schedules_and_plain_actions() -> None:
    model = make(level=1, learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.1 + 0.1 * left)
    model.learn(2 * FRAMES, use_masking=False)
    assert model.logger.name_to_value["train/clip_range"] == pytest.approx(0.1)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.0)
    assert np.isfinite(weights(model)).all()


@pytest.mark.parametrize("spoil", [{"spoil_reward": np.nan}, {"spoil_mask": False}, {"spoil_mask": True}])
def test_faults_stop_with_the_weights_before(spoil: dict[str, Any]) -> None:
    model = make(env=Watched(make_sb3_env(11, N, 5), **spoil), live=True)
    before = weights(model)
    with pytest.raises((FloatingPointError, RuntimeError)) as error:
        model.learn(FRAMES)
    what = {"spoil_reward": "reward was not finite", "spoil_mask": "its mask is empty"}[next(iter(spoil))]
    assert ("declares that it never is" if spoil.get("spoil_mask") else what) in str(error.value)
    np.testing.assert_array_equal(weights(model), before)


def test_other_spaces_are_refused_and_other_sizes_work() -> None:
    with pytest.raises(ValueError, match="Box observation"):
        FastPPO("MlpPolicy", gymnasium.make("FrozenLake-v1"), device="cpu")
    model = FastPPO("MlpPolicy", gymnasium.make("CartPole-v1"), n_steps=128, batch_size=64, device="cpu", seed=0)
    model.learn(512, use_masking=False)
    assert np.isfinite(weights(model)).all()

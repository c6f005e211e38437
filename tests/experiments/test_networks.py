"""The networks: slots are interchangeable, the conductor computes what torch computes, and stock learners take them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from conductor.bundle import load_bundle, write_bundle
from conductor.policy import NetworkSpec, Policy, make_policy
from experiments import train
from experiments.algorithms import torch_logits
from experiments.config import TrainConfig
from experiments.evaluate import greedy, play_policy
from experiments.export import margins, network_of, tensors_of
from experiments.networks import SLOTS, policy_of
from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.sb3 import make_sb3_env
from tests.conductor.helpers import bundle_parts, random_observations
from tests.experiments.test_config import refused

SPECS = {
    "mlp": {"kind": "mlp", "layers": [64, 64], "activation": "relu"},
    "symphony": {"kind": "mlp", "layers": [512, 256, 128], "activation": "relu"},
    "slots": {"kind": "slots", "widths": list(SLOTS), "activation": "relu"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def learner(network: str, kind: type[Any] = MaskablePPO, level: int = 11, n: int = 4, **changes: Any) -> Any:
    """An untrained learner as the factory would configure its policy."""
    algo = "ppo" if kind is PPO else "maskable_ppo"
    cfg = TrainConfig(**{"algo": algo, "network": network, "net_arch": None, "activation": "relu", **changes})
    policy, policy_kwargs = policy_of(cfg)
    sizes = {"n_steps": 8, "batch_size": 8 * n, "n_epochs": 1, "learning_rate": 1e-3}
    return kind(policy, make_sb3_env(level, n, 0), policy_kwargs=policy_kwargs, seed=0, device="cpu", **sizes)


def scrambled(model: Any) -> Any:
    """The learner with other weights and biases, so that none is 0 and no decision close."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.policy.parameters():
            tensor.normal_(0, 0.15, generator=generator)
    return model


def exported(model: Any) -> Policy:
    return make_policy(TypeAdapter(NetworkSpec).validate_python(network_of(model)), tensors_of(model))


def values_of(model: Any, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.policy.predict_values(torch.from_numpy(obs)).numpy()


def random_play(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (count, 512) and masks (count, 128) of level 11 under random legal actions."""
    engine = Engine(load_level(11), 250, seed=5)
    engine.reset()
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(count // 250):
        seen.append((engine.obs.copy(), engine.masks.copy()))
        engine.step(np.where(engine.masks, rng.random(engine.masks.shape), -1).argmax(axis=1))
    obs, masks = (np.concatenate(part) for part in zip(*seen, strict=True))
    return obs, masks


def check_decisions(model: Any, policy: Policy, obs: np.ndarray, masks: np.ndarray) -> str:
    """The conductor decides as torch wherever the best logit leads clearly, one by one and all at once."""
    values = torch_logits(model)(obs)
    many = policy.logits_many(obs)
    np.testing.assert_allclose(many, values, rtol=1e-4, atol=2e-5)
    alone = np.array([policy.act(*pair) for pair in zip(obs, masks, strict=True)])
    wanted = greedy(values, masks)
    clear = margins(values, masks) >= 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(alone[clear], wanted[clear])
    np.testing.assert_array_equal(greedy(many, masks)[clear], wanted[clear])
    return f"{len(obs)} decisions, {(alone == wanted).sum()} equal; {clear.sum()} clear, all equal"


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_slot_takes_its_logits_along(activation: str) -> None:
    """Also an empty one: only where it stands changes."""
    model = scrambled(learner("slots", activation=activation))
    obs = random_observations(68)
    order = np.random.default_rng(2).permutation(16)
    moved = obs.copy()
    moved[:, :400] = obs[:, :400].reshape(-1, 16, 25)[:, order].reshape(-1, 400)
    before, after = torch_logits(model)(obs), torch_logits(model)(moved)
    slots = before[:, :112].reshape(-1, 16, 7)
    assert slots.std(axis=0).min() > 0.01
    np.testing.assert_allclose(after[:, :112].reshape(-1, 16, 7), slots[:, order], atol=1e-5)
    np.testing.assert_allclose(after[:, 112:], before[:, 112:], atol=1e-5)
    np.testing.assert_allclose(values_of(model, moved), values_of(model, obs), atol=1e-5)


def test_slots_see_each_other_and_nothing_in_an_empty_slot() -> None:
    model = scrambled(learner("slots"))
    obs = random_observations(17)[[5]]
    used = np.flatnonzero(obs[0, :400:25])
    empty = np.flatnonzero(obs[0, :400:25] == 0)
    before, value = torch_logits(model)(obs)[0], values_of(model, obs)
    assert (before[:112].reshape(16, 7)[empty] == 0).all()
    other = obs.copy()
    other[0, 25 * used[0] + 3] += 1.0
    after = torch_logits(model)(other)[0]
    assert (np.abs(after - before)[:112].reshape(16, 7)[used].max(axis=1) > 1e-4).all()
    assert np.abs(after - before)[112:].max() > 1e-4
    assert np.abs(values_of(model, other) - value).max() > 1e-4
    other = obs.copy()
    other[0, 25 * empty[0] + 3] = 1.0  # no observation of the Pit
    np.testing.assert_array_equal(torch_logits(model)(other)[0], before)
    none = obs.copy()
    none[0, :400] = 0.0
    assert np.isfinite(torch_logits(model)(none)).all()


def test_first_weights_are_those_of_stable_baselines() -> None:
    policy = learner("slots").policy
    actor, head = policy.mlp_extractor.actor, policy.action_net
    for layer, gain in ((actor.encoder, 2**0.5), (actor.own, 2**0.5), (head.verbs, 0.01), (policy.value_net, 1.0)):
        weight = layer.weight.detach()
        np.testing.assert_allclose(weight @ weight.T, gain**2 * np.eye(len(weight)), atol=1e-5)
    assert all((tensor == 0).all() for name, tensor in policy.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("kind", [MaskablePPO, PPO])
def test_stock_learners_train_every_weight(kind: type[Any], tmp_path: Path) -> None:
    model = learner("slots", kind, n=32)
    before = {name: tensor.detach().clone() for name, tensor in model.policy.named_parameters()}
    assert len(before) == 14 + 7 + 2  # policy, value tower, value
    model.learn(256)
    still = [name for name, tensor in model.policy.named_parameters() if torch.equal(tensor, before[name])]
    assert still == []
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", device="cpu")
    obs, masks = random_play(1000)
    options = {"action_masks": masks} if kind is MaskablePPO else {}
    np.testing.assert_array_equal(
        again.predict(obs, deterministic=True, **options)[0], model.predict(obs, deterministic=True, **options)[0]
    )
    again.set_env(make_sb3_env(11, 32, 1))
    again.learn(256)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("network", SPECS)
def test_the_conductor_decides_as_torch(network: str, activation: str) -> None:
    model = scrambled(learner(network, activation=activation))
    assert network_of(model) == {**SPECS[network], "activation": activation}
    check_decisions(model, exported(model), *random_play(4000))


@pytest.mark.slow
@pytest.mark.parametrize("network", SPECS)
def test_the_conductor_decides_as_torch_a_hundred_thousand_times(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After some training, on the policy's own play and on random play."""
    model = learner(network, n=256).learn(96 * 256)  # the heads begin near 0, and for long all logits are close
    seen: list[tuple[np.ndarray, np.ndarray]] = [random_play(60_000)]
    play_policy(
        torch_logits(model), load_level(11), split="validation", n=2400,
        watch=lambda obs, masks, actions: seen.append((obs.copy(), masks.copy())),
    )  # fmt: skip
    obs, masks = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert len(obs) >= 100_000
    told = check_decisions(model, exported(model), obs, masks)
    with capsys.disabled():
        print(f"\n{network}: {told}")


def test_slots_travel_in_a_bundle(tmp_path: Path) -> None:
    model = scrambled(learner("slots", net_arch=[24, 40]))
    obs, masks = random_play(1000)
    values = torch_logits(model)(obs)
    clear = np.flatnonzero(margins(values, masks) > 0.01)[:64]
    golden = {"obs": obs[clear], "mask": masks[clear], "action": greedy(values, masks)[clear]}
    parts = {**bundle_parts(), "tensors": tensors_of(model), "network": network_of(model), "golden": golden}
    write_bundle(tmp_path / "bundle", **parts)
    check_decisions(model, load_bundle(tmp_path / "bundle").policy, obs, masks)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("network=transformer",), ("network=transformer", "mlp, symphony, slots")),
        (("network=slots", "net_arch=[64]"), ("net_arch=[64]", "two widths")),
        (("network=slots", "net_arch=[64,0]"), ("net_arch=[64, 0]", "between 1 and 4096")),
        (("network=symphony", "net_arch=[64,64]"), ("net_arch=[64, 64]", "null", "network=mlp")),
        (("network=mlp", "net_arch=[]"), ("net_arch=[]", "one to eight widths")),
        (("net_arch=64",), ("net_arch", "64")),
    ],
)
def test_bad_sizes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    sentence = refused(monkeypatch, capsys, train, *arguments)
    for part in parts:
        assert part in sentence

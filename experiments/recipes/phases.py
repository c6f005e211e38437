"""The phases of a recipe before PPO: who plays, what is verified, what is learned; each is written down when it is done.

A phase leaves its files in RUN/recipe and, last of all, a JSON file with what there is to say of it. A training that goes on
takes what is there and repeats the phase that was interrupted from its beginning, with random numbers of its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments import checkpoints
from experiments.algorithms import BEST
from experiments.callbacks import Overseer
from experiments.config import TrainConfig
from experiments.errors import ExperimentError
from experiments.fast_ppo import FastPPO
from experiments.fast_ppo.reward_scale import RewardScale
from experiments.files import read_json, write_json, write_with
from experiments.recipes import supervised, teacher, trajectories, verifier
from experiments.recipes.around_policy import Around
from experiments.recipes.demonstrations import demonstrate, visit
from experiments.recipes.settings import RecipeConfig
from experiments.recipes.told import FOLDER, Facts
from experiments.recipes.trajectories import Trajectories
from experiments.recipes.verifier import Replay

if TYPE_CHECKING:
    from experiments.evaluate import Referee

PLAYING, LEARNING, VISITING = 0x7EAC, 0x1EA2, 0x715175  # tell the random streams of phases apart
ROLLOUTS = "recipe_options.teacher.rollouts"
INSTANCES = 2**40  # train instances are drawn from so many


class Recipe:
    """The phases of one training. `exposure` is what the policy sees; `overseer` is told of every phase.

    Of several levels each has its own teacher, rule and verifier; what is kept of all of them is learned together.
    """

    def __init__(self, cfg: TrainConfig, run: Path, exposure: str, model: FastPPO, overseer: Overseer) -> None:
        self.cfg, self.options, self.exposure = cfg, cfg.recipe_options, exposure
        self.folder, self.model, self.overseer = run / FOLDER, model, overseer
        self.examiner, self.referees = overseer.examiner, overseer.examiner.referees
        self.replays: list[Replay] = []
        self._count = self._decisions = 0

    @property
    def iterates(self) -> bool:
        """Whether the policy improves in rounds of its own instead of by PPO."""
        return self.cfg.recipe == "expert_iteration"

    @property
    def visits(self) -> int:
        """How many rounds of visits there are: none where nobody looks ahead."""
        return self.options.visits.rounds if any(map(self._looks_ahead, self.referees)) else 0

    def _options(self, referee: Referee) -> RecipeConfig:
        """The options on a level. Of several each says for itself whether its teacher looks ahead, where its file does."""
        own = referee.level.training.get(ROLLOUTS) if len(self.referees) > 1 else None
        of = self.options
        return of if own is None else replace(of, teacher=replace(of.teacher, rollouts=own))

    def _looks_ahead(self, referee: Referee) -> bool:
        """Whether somebody does on this level: only then can he say what he expects where the learner goes."""
        return referee.level.order is None and self._options(referee).teacher.rollouts > 0

    # ------------------------------------------------------------------ what a training calls
    def prepare(self) -> bool:
        """All phases, those that are done from their files; whether PPO follows, for which the model is then ready.

        Raises:
            ExperimentError: too little was kept to learn from, or a file is damaged.
            FloatingPointError: a gradient is not finite.
        """
        self.folder.mkdir(exist_ok=True)
        self.overseer.init_callback(self.model)
        self.model.policy.set_training_mode(False)
        if not self.options.supervised.use:
            self._scale_rewards([])
            return True
        first, visits = self._draw(0, self.options.teacher.episodes), self.visits
        self._gather("teacher", lambda referee: demonstrate(referee, self._options(referee), first, self.exposure))
        self._scale_rewards(self.replays)
        self._learn(0)
        for number in range(1, visits + 1):
            if self.overseer.stopped is None:
                self._gather(f"visits {number}", functools.partial(self._visit, number), visited=True)
                self._learn(number)
        for number in range(1, self.options.rounds.rounds + 1 if self.iterates else 1):
            if self.overseer.stopped is None:
                self._gather(f"round {number}", functools.partial(self._around, visits + number))
                self._learn(visits + number)
        if self.overseer.stopped is not None:
            return False
        if self.iterates or not self.options.ppo.use:
            self.overseer.ended = f"the {self._count} phases of {self.cfg.recipe} are done"
            return False
        self._hold()
        return True

    def go_on(self, memory: dict[str, Any]) -> bool:
        """Instead of `prepare`, after a checkpoint of PPO was restored; `memory` is what it remembers of the learner. True."""
        self._scale_rewards([])
        self._hold()
        self.model.remember(memory)
        return True

    # ------------------------------------------------------------------ phases in general
    def _phase(self, name: str, work: Callable[[Path], Facts]) -> Facts:
        """What a phase's file says; if there is none, what `work` finds out. `work` is given a path for files of its own."""
        path = self._path(self._count, name)
        self._count += 1
        if not path.with_suffix(".json").is_file():
            seconds, cpu = time.perf_counter(), time.process_time()
            found = work(path.with_suffix(".npz"))
            found |= {"name": name, "seconds": time.perf_counter() - seconds, "cpu_seconds": time.process_time() - cpu}
            write_json(path.with_suffix(".json"), found)
            print(f"{name}: {found['line']}, {found['cpu_seconds']:.1f} CPU s", flush=True)
        facts: Facts = read_json(path.with_suffix(".json"))
        overseer, log = self.overseer, self.model.logger
        overseer.seconds += facts["seconds"]
        overseer.cpu_seconds += facts["cpu_seconds"]
        for key, value in facts["values"].items():
            log.record(key, value)
        log.dump(self.model.num_timesteps)
        overseer.rows.send()
        overseer.rows.save()
        return facts

    def _path(self, count: int, name: str) -> Path:
        return self.folder / f"{count:02d}-{name.replace(' ', '-')}"

    def _draw(self, number: int, episodes: int) -> np.ndarray:
        """The train instances of a phase, int64."""
        return np.random.default_rng([self.cfg.seed, PLAYING, number]).integers(0, INSTANCES, episodes)

    # ------------------------------------------------------------------ playing and verifying
    def _gather(self, what: str, play: Callable[[Referee], Trajectories], visited: bool = False) -> None:
        """Trajectories are played on each level, stored and replayed; what is kept joins what is learned from.

        `visited`: they are the learner's own, so they need not be good, and none are played where nobody looks ahead.
        """
        lines = []
        for referee in self.referees:
            if visited and not self._looks_ahead(referee):
                continue
            name = what if len(self.referees) == 1 else f"{what} level {referee.level.label}"
            facts = self._gather_on(referee, name, play, visited)
            lines.append(facts["line"])
            if self.iterates:
                self._decisions += facts["decisions"]
                self.model.num_timesteps = self._decisions
        if sum(len(replay.kept) for replay in self.replays) < 2:
            raise ExperimentError(
                f"recipe_options.teacher.episodes={self.options.teacher.episodes}: {'; '.join(lines)}; too few to learn from, "
                "more of them or recipe_options.verifier.at_least_rule=false may help"
            )

    def _gather_on(self, referee: Referee, name: str, play: Callable[[Referee], Trajectories], visited: bool) -> Facts:
        replays: list[Replay] = []

        def work(path: Path) -> Facts:
            played = play(referee)
            played.save(path)
            replays.append(self._replay(referee, played, visited))
            return _account(name, replays[-1], played, teacher.rule_of(referee.level))

        facts = self._phase(name, work)
        if not replays:
            stored = trajectories.load(self._path(self._count - 1, name).with_suffix(".npz"))
            replays.append(self._replay(referee, stored, visited))
        self.replays.append(replays[0])
        return facts

    def _replay(self, referee: Referee, played: Trajectories, visited: bool) -> Replay:
        of, rule = self.options.verifier, teacher.base_players(referee, ["calibrated"])["calibrated"]
        return verifier.replay(
            referee.level, played, rule, self.model.ladder, exposure=self.exposure, reward=self.cfg.reward,
            gamma=self.cfg.gamma, believe=not of.use, at_least_rule=of.use and of.at_least_rule and not visited,
            masks=self.cfg.masks,
        )  # fmt: skip

    def _visit(self, number: int, referee: Referee) -> Trajectories:
        instances, level = self._draw(number, self.options.visits.episodes), referee.level
        rng = np.random.default_rng([self.cfg.seed, VISITING, number, level.number])
        return visit(self.model, referee, self._options(referee), instances, self.exposure, rng)

    def _around(self, number: int, referee: Referee) -> Trajectories:
        instances = self._draw(number, self.options.rounds.episodes)
        scale = self.model.reward_scale.deviation if self.model.reward_scale else 1.0
        around = Around(self.model, referee.level, self.options.rounds, self.exposure, self.cfg.reward, scale)
        return around.play(instances, teacher.Progress("round", len(instances)))

    # ------------------------------------------------------------------ learning
    def _learn(self, number: int) -> None:
        """The supervised phase on all that was kept, from the weights as they are; then a look."""
        name = f"supervised {number}"
        examiner, made = self.examiner, False

        def work(path: Path) -> Facts:
            nonlocal made
            examples = supervised.gathered(self.replays, self.options.supervised.target)
            if self.model.reward_scale is not None:
                examples.returns /= self.model.reward_scale.deviation
            rng = np.random.default_rng([self.cfg.seed, LEARNING, number])
            found = supervised.learn(self.model, examples, self.options.supervised, self.cfg.seed, rng, _tell)
            arrays = {key: value.numpy() for key, value in self.model.policy.state_dict().items()}
            write_with(path, lambda temporary: np.savez(temporary, **arrays))
            look, scores = examiner.look(self.model)
            if look is examiner.best:
                checkpoints.write_bytes(self.folder.parent / BEST, checkpoints.model_bytes(self.model))
            made = True
            values = {f"supervised/{key}": value for key, value in found.items()}
            line = (
                f"{found['frames']:,} decisions, {found['epochs']} epochs, the best after {found['best']}, agreement "
                f"{found['agreement']:.3f}; validation {look.total:.4f}, perf {look.perf:.3f}"
            )
            return {
                "line": line, "look": asdict(look), "values": values | {f"validation/{k}": v for k, v in scores.items()}
            }  # fmt: skip

        facts = self._phase(name, work)
        if not made:
            self.model.policy.load_state_dict(_weights(self._path(self._count - 1, name).with_suffix(".npz")))
            self.model.policy.optimizer.state.clear()
            examiner.recall([*examiner.memory(), facts["look"]])
        self.overseer.stopped = examiner.verdict()

    def _hold(self) -> None:
        """PPO is held to the supervised policy, if it is to be."""
        kl = self.options.kl
        if kl.use:
            weights = _weights(next(self.folder.glob(f"*-supervised-{self.visits}.npz")))
            self.model.hold_to(weights, kl.coefficient, kl.target, kl.rate)

    def _scale_rewards(self, replays: list[Replay]) -> None:
        """Rewards are scaled, if they are to be; the spread of the teacher's returns comes first."""
        if self.options.reward_normaliser:
            self.model.reward_scale = RewardScale(self.cfg.n_envs, self.cfg.gamma)
            for replay in replays:
                self.model.reward_scale.take(replay.gathered())


def _tell(epoch: int, found: dict[str, float]) -> None:
    """A line per epoch for people, every fifth."""
    if epoch % 5 == 0:
        print(f"  epoch {epoch}: loss {found['loss']:.4f}, agreement {found['agreement']:.3f}", flush=True)


def _account(name: str, replay: Replay, played: Trajectories, rule: str) -> Facts:
    """How many trajectories were tried and kept, why others were refused, and how good they are beside the rule, named."""
    counts, kept = replay.counts(), replay.kept
    word = name.split()[0]
    means = {"score": played.totals.mean(), "rule": replay.rule.mean()}
    means |= {"kept_score": played.totals[kept].mean(), "kept_rule": replay.rule[kept].mean()} if len(kept) else {}
    values = {"tried": len(played), "kept": len(kept)} | {key: float(value) for key, value in means.items()}
    refused = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count and verdict != verifier.KEPT)
    line = (
        f"{len(played):,} trajectories tried (mean score {means['score']:.4f}, {rule}'s {means['rule']:.4f}), "
        f"{len(kept):,} kept; refused: {refused or 'none'}"
    )
    decisions = int(played.lengths[kept].sum())
    whole = {f"{word}/{key}": value for key, value in values.items()}
    return {"line": line, "values": whole, "tried": len(played), "verdicts": counts, "decisions": decisions}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The policy that a supervised phase left. Raises ExperimentError if the file is damaged."""
    return {name: torch.from_numpy(values) for name, values in trajectories.arrays_in(path).items()}

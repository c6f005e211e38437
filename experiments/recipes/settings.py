"""What can be configured about a recipe: names, types and ranges; the numbers stand in `configs/train.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

RECIPES = ("plain", "srl_rlvr", "expert_iteration")
PLAYS = ("base", "lookahead")
TARGETS = ("expected", "weighted", "chosen")


@dataclass
class TeacherConfig:
    """Who plays, how often, and how far it looks ahead."""

    episodes: int = MISSING
    rollouts: int = MISSING
    bases: list[str] = MISSING
    plays: str = MISSING


@dataclass
class VisitsConfig:
    """Rounds in which the learner plays, and the teacher says what it expects."""

    rounds: int = MISSING
    episodes: int = MISSING
    greedy: float = MISSING


@dataclass
class RetrieverConfig:
    """Whether similar instances say which base player the teacher starts from."""

    use: bool = MISSING
    library: int = MISSING
    neighbours: int = MISSING


@dataclass
class VerifierConfig:
    """Which trajectories are learned from."""

    use: bool = MISSING
    at_least_rule: bool = MISSING


@dataclass
class SupervisedConfig:
    """How trajectories are learned from."""

    use: bool = MISSING
    epochs: int = MISSING
    patience: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    vf_coef: float = MISSING
    held_out: float = MISSING
    smoothing: float = MISSING
    target: str = MISSING
    ent_coef: float = MISSING


@dataclass
class PPOConfig:
    """PPO on the verifiable score, after the supervised phase."""

    use: bool = MISSING
    learning_rate: float | None = MISSING
    ent_coef: float | None = MISSING


@dataclass
class KLConfig:
    """How PPO is held to the supervised policy."""

    use: bool = MISSING
    coefficient: float = MISSING
    target: float | None = MISSING
    rate: float = MISSING


@dataclass
class RoundsConfig:
    """Rounds of expert iteration: lookahead around the policy, then learning from all that was verified."""

    rounds: int = MISSING
    episodes: int = MISSING
    candidates: int = MISSING
    least: float = MISSING
    futures: int = MISSING
    horizon: int = MISSING
    confidence: float = MISSING


@dataclass
class RecipeConfig:
    """The parts of a recipe; each can be switched off."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    visits: VisitsConfig = field(default_factory=VisitsConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    reward_normaliser: bool = MISSING
    rounds: RoundsConfig = field(default_factory=RoundsConfig)


RANGES: dict[str, tuple[float, float]] = {
    "teacher.episodes": (2, 1_000_000),
    "teacher.rollouts": (0, 1000),
    "visits.rounds": (0, 1000),
    "visits.episodes": (2, 1_000_000),
    "visits.greedy": (0.0, 1.0),
    "retriever.library": (1, 1_000_000),
    "retriever.neighbours": (1, 1000),
    "supervised.epochs": (1, 10_000),
    "supervised.patience": (1, 10_000),
    "supervised.batch_size": (2, 2**24),
    "supervised.learning_rate": (0.0, 1.0),
    "supervised.vf_coef": (0.0, 100.0),
    "supervised.held_out": (0.01, 0.9),
    "supervised.smoothing": (0.0, 1.0),
    "supervised.ent_coef": (0.0, 10.0),
    "kl.coefficient": (1e-9, 1000.0),
    "kl.rate": (0.0, 4.0),
    "rounds.rounds": (0, 1000),
    "rounds.episodes": (2, 1_000_000),
    "rounds.candidates": (2, 128),
    "rounds.least": (0.0, 0.5),
    "rounds.futures": (2, 1000),
    "rounds.horizon": (0, 1_000_000),
    "rounds.confidence": (0.0, 10.0),
}


def fault(recipe: str, algo: str, batch_size: int, options: RecipeConfig) -> str | None:
    """What is wrong with a combination of options whose numbers lie in `RANGES`; None if nothing is."""
    if recipe == "plain":
        return None
    if algo != "fast_ppo":
        return f"recipe={recipe} algo={algo}: recipes other than plain need algo=fast_ppo"
    choices = (("supervised.target", options.supervised.target, TARGETS), ("teacher.plays", options.teacher.plays, PLAYS))
    for name, chosen, known in choices:
        if chosen not in known:
            return f"recipe_options.{name}={chosen}: must be one of {', '.join(known)}"
    if not options.teacher.bases:
        return "recipe_options.teacher.bases=[]: must name a player, such as [calibrated]"
    if options.supervised.batch_size > batch_size:
        return (
            f"recipe_options.supervised.batch_size={options.supervised.batch_size}: must be at most batch_size={batch_size}, "
            "for which the network has room"
        )
    if not options.supervised.use and (recipe == "expert_iteration" or options.kl.use or not options.ppo.use):
        return (
            "recipe_options.supervised.use=false: only with recipe=srl_rlvr, recipe_options.kl.use=false and "
            "recipe_options.ppo.use=true, or nothing is learned or held to"
        )
    for name, value in (("ppo.learning_rate", options.ppo.learning_rate), ("ppo.ent_coef", options.ppo.ent_coef)):
        if value is not None and not 0.0 <= value <= 1.0:
            return f"recipe_options.{name}={value}: must be null or lie between 0 and 1"
    if options.kl.target is not None and not 0.0 < options.kl.target <= 100.0:
        return f"recipe_options.kl.target={options.kl.target}: must be null or lie between 0 and 100, such as 0.1"
    return None

"""Which base player the teacher starts from in which instance, and what it then plays.

With one base player there is nothing to choose. Of several all are tried, or, with the retriever, only the one that was best
in similar instances, once a library of instances in which all were tried is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.evaluate import Referee
from experiments.recipes import teacher
from experiments.recipes.retriever import Retriever, descriptions
from experiments.recipes.settings import RecipeConfig
from experiments.recipes.trajectories import Trajectories, joined
from fq_env.engine import Engine, Player
from fq_env.level import Level
from fq_env.players import lookahead

if TYPE_CHECKING:
    from experiments.fast_ppo import FastPPO

LONGEST = 4


def demonstrate(referee: Referee, options: RecipeConfig, instances: np.ndarray, exposure: str) -> Trajectories:
    """The teacher's trajectories on train `instances` (k,), k > 0; an instance occurs once for each base player tried there.

    Where the order of calls is hidden, the proven optimum's plan is played, and base players do not matter.
    """
    level = referee.level
    if level.order is not None:
        return teacher.play_plans(level, instances, exposure, teacher.Progress("teacher", len(instances)))
    bases = teacher.base_players(referee, options.teacher.bases)
    players = [lookahead(player, options.teacher.rollouts) for player in bases.values()]
    movers = [by_itself(player) if options.teacher.plays == "base" else None for player in bases.values()]
    retrieves = options.retriever.use and len(players) > 1
    library = instances[: options.retriever.library] if retrieves else instances
    rest = instances[len(library) :]
    progress = teacher.Progress("teacher", len(library) * len(players) + len(rest))
    parts = [
        teacher.play(level, player, base, library, exposure, progress.after(base * len(library)), movers[base])
        for base, player in enumerate(players)
    ]
    if len(rest):
        parts += _retrieved(level, players, movers, parts, library, rest, options, exposure, progress)
    return joined(parts)


def by_itself(player: Player) -> teacher.Mover:
    """A base player that makes its own moves, whatever lookahead would do."""
    return lambda engine, live, obs, masks: engine.advise(player, live)[live]


def visit(
    model: FastPPO, referee: Referee, options: RecipeConfig, instances: np.ndarray, exposure: str, rng: np.random.Generator
) -> Trajectories:
    """The learner's own trajectories on train `instances` (k,), k > 0; at each of its decisions the teacher says what it
    expects of every legal action. In some episodes the learner takes its first choice, in the others it draws. One that takes
    `LONGEST` times as many decisions as the base player on average is ended by that, as few long episodes would else take most
    of the teacher's time.

    A teacher's own trajectories do not show what to do where only the learner goes (Ross and Bagnell 2014, "Reinforcement and
    Imitation Learning via Interactive No-Regret Learning", whose AggreVaTe this is).
    """
    player = lookahead(next(iter(teacher.base_players(referee, options.teacher.bases).values())), options.teacher.rollouts)

    def mover(engine: Engine, live: np.ndarray, obs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        first, logits = model.first_choice(obs, masks)
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        actions: np.ndarray = np.where(live < options.visits.greedy * engine.n, first, drawn)
        return actions

    rule = player._replace(rollouts=0)
    most = LONGEST * round(teacher.play(referee.level, rule, 0, instances, exposure).lengths.mean())
    return teacher.play(referee.level, player, 0, instances, exposure, teacher.Progress("visits", len(instances)), mover, most)


def _retrieved(
    level: Level, players: list[Player], movers: list[teacher.Mover | None], parts: list[Trajectories], library: np.ndarray,
    rest: np.ndarray, options: RecipeConfig, exposure: str, progress: teacher.Progress,
) -> list[Trajectories]:  # fmt: skip
    """The `rest` of the instances, each from the base player that was best in similar ones of the library."""
    scores = np.stack([part.totals for part in parts], axis=1)
    retriever = Retriever(descriptions(level, library, exposure), scores, options.retriever.neighbours)
    chosen = retriever.best_bases(descriptions(level, rest, exposure))
    found, done = [], len(library) * len(players)
    for base, player in enumerate(players):
        mine = rest[chosen == base]
        if len(mine):
            found.append(teacher.play(level, player, base, mine, exposure, progress.after(done), movers[base]))
            done += len(mine)
    return found

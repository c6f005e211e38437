"""Players that are not trained: `random`, the rules of `pit.rules` at kernel speed, and for hidden order the proven optimum.

All play named instances of a split, so that everybody meets the same workflows, durations and failures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fq_env.engine import Engine, Player
from fq_env.errors import FQError
from fq_env.level import Level, load_level
from pit.layout import PREMIUM, VERBS

CHUNK = 256  # episodes played side by side
THETAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


PLAYERS = {
    "random": Player(-1),
    "fifo": Player(0),
    "sequential": Player(4),
    "critical_path": Player(1),
    "critical_path_warm_wait": Player(2),
    "smallest_remaining": Player(3, theta=0.0),
}
ROLLOUTS = 12  # of lookahead


def calibrated(weights: np.ndarray) -> Player:
    """The linear rule with these numbers."""
    return Player(5, weights=weights)


def lookahead(base: Player, rollouts: int = ROLLOUTS) -> Player:
    """One step of improvement over a rule: it knows true means, and never what will be drawn."""
    return base._replace(rollouts=rollouts)


def as_player(player: str | Player, **params: float) -> Player:
    """A player by name, with its parameters. Raises `FQError`."""
    if isinstance(player, str):
        if player not in PLAYERS:
            raise FQError(f"player {player!r} is unknown; choose one of {', '.join(PLAYERS)}")
        player = PLAYERS[player]
    unknown = set(params) - {"theta", "variant", "rollouts"}
    if unknown:
        raise FQError(f"a player has no parameter {sorted(unknown)[0]!r}; it takes theta, variant and rollouts")
    return player._replace(**params)  # type: ignore[arg-type]


def play(
    level: int | str | Path | Level,
    player: str | Player,
    *,
    split: str,
    n: int,
    first: int = 0,
    exposure: str | None = None,
    threads: int = 1,
    **params: float,
) -> np.ndarray:
    """Instances first .. first + n - 1 of a split, played to the end; (n,) records of `fq_env.state.EPISODE`."""
    engine = Engine(level, min(n, CHUNK), split=split, exposure=exposure, autoreset="disabled", threads=threads)
    return play_on(engine, as_player(player, **params), split=split, n=n, first=first)


def play_on(engine: Engine, player: Player, *, split: str, n: int, first: int = 0) -> np.ndarray:
    """`play` on an engine that is there already."""
    results = []
    for start in range(first, first + n, engine.n):
        count = min(engine.n, first + n - start)
        rows = np.arange(count)
        engine.reset(rows, split=split, instances=rows + start)  # type: ignore[arg-type]
        engine.play(player, rows)
        results.append(engine.episodes[:count].copy())
    return np.concatenate(results)


def fit_warm_wait(level: int | str | Path | Level, split: str = "train", n: int = 256) -> dict[str, float]:
    """Theta and variant with which critical_path_warm_wait scores best on n instances of a split (never the test split)."""
    if split == "test":
        raise FQError("split 'test' is not for fitting; use 'train' or 'validation'")
    level = load_level(level)
    used = {name for f in level.system.functions.values() for name, _ in f.variants()} & set(level.system.verbs)
    rule = PLAYERS["critical_path_warm_wait"]
    candidates = [rule._replace(theta=theta, variant=v) for v in range(PREMIUM + 1) if VERBS[v] in used for theta in THETAS]
    scores = [play(level, candidate, split=split, n=n)["total"].mean() for candidate in candidates]
    best = candidates[int(np.argmax(scores))]
    return {"theta": best.theta, "variant": best.variant}

"""Which of two is better: `python -m experiments.compare A B level=11`.

A and B are run folders, bundles (each a path, a quoted pattern or a list; several are the training seeds of one method) or
players by name, such as fifo. Both play the same instances; the intervals are paired.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from experiments import cli, statistics
from experiments.errors import ExperimentError
from experiments.evaluate import (
    PLAYERS,
    Policy,
    Referee,
    at_several_commits,
    check_instances,
    level_for,
    name_of,
    open_policies,
    play_method,
)
from experiments.files import check_out, write_json


@dataclass
class CompareConfig:
    """Keys of the command; explained in `configs/compare.yaml`."""

    a: Any = MISSING
    b: Any = MISSING
    level: Any = MISSING
    split: str = MISSING
    n: int = MISSING
    first: int = MISSING
    fit: int = MISSING
    out: str | None = MISSING


def side(key: str, value: Any) -> tuple[str, list[Policy]]:
    """The name of one side and its policies, one per training seed; a player has none.

    Raises:
        ExperimentError: nothing is named, what is named is no player, run folder or bundle, or several differ in more than
            their seed.
    """
    if value is None:
        raise ExperimentError(f"{key}=null: name two to compare, each a run folder, a bundle or a player: compare A B")
    if isinstance(value, str) and value in PLAYERS:
        return value, []
    policies = open_policies(key, value)
    if not policies:
        raise ExperimentError(f"{key}={value}: the list is empty; name at least one run folder or bundle")
    if len({policy.method for policy in policies}) > 1:
        raise ExperimentError(f"{key}={value}: these were trained with different configurations; name seeds of one of them")
    if len({p.seed for p in policies}) < len(policies):
        raise ExperimentError(f"{key}={value}: a seed is there twice; name different training seeds, or one policy")
    return name_of(policies), policies


def verdict(found: dict[str, float], what: str) -> str:
    """One sentence: which is better by how much, or that no difference was shown. `found` is `statistics.lead` of A over B."""
    middle, low, high = found["difference"], found["difference_low"], found["difference_high"]
    if low <= 0.0 <= high:
        return f"no difference shown: A minus B is {middle:+.4f} (95 %: {low:+.4f} to {high:+.4f}) on {what}"
    low, high = sorted((abs(low), abs(high)))
    return f"{'A' if middle > 0 else 'B'} is better by {abs(middle):.4f} (95 %: {low:.4f} to {high:.4f}) on {what}"


def compare(cfg: CompareConfig) -> dict[str, Any]:
    """Plays, prints and, if asked, writes the comparison; what was written."""
    check_instances(cfg.split, cfg.n, cfg.first, cfg.fit)
    check_out(cfg.out)
    sides = {"A": side("a", cfg.a), "B": side("b", cfg.b)}
    level = level_for(cfg.level, [policy for _, policies in sides.values() for policy in policies])
    where: dict[str, Any] = {"split": cfg.split, "n": cfg.n, "first": cfg.first}
    episodes = {}
    for letter, (name, policies) in sides.items():
        if policies:
            episodes[letter] = play_method(policies, level, **where)
            continue
        played = Referee(level, cfg.fit).players(names=[name], **where)
        if not played:
            raise ExperimentError(
                f"{letter.lower()}={name}: does not play level {level.number or level.name}; name another player"
            )
        episodes[letter] = played[name]
    rows = [
        {"player": f"{letter}: {name}", "policy": bool(policies), "bound": False, **statistics.summary(episodes[letter])}
        for letter, (name, policies) in sides.items()
    ]
    found = statistics.lead(*(statistics.totals(records) for records in episodes.values()))
    print(statistics.markdown(rows, level.probe))
    iqms = statistics.ranged(found, "iqm_difference", "iqm_difference_low", "iqm_difference_high", "+.4f")
    chance = statistics.ranged(found, "probability", "probability_low", "probability_high", ".3f")
    print(f"\nA minus B: IQM {iqms}; P(A > B) {chance}, equals count half")
    if any(len(policies) == 1 for _, policies in sides.values()):
        print("One training seed stands for itself: this compares policies, and says little of how they were trained.")
    for sentence in at_several_commits({f"{letter}: {name}": policies for letter, (name, policies) in sides.items()}):
        print(sentence)
    said = verdict(found, f"{cfg.n:,} {cfg.split} instances")
    print(f"\n{said}")
    result = {"level": level.name, **where, **found, "verdict": said, "rows": rows}
    if cfg.out is not None:
        write_json(Path(cfg.out), result)
        print(f"written: {cfg.out}")
    return result


def named(words: list[str]) -> list[str]:
    """The command's words, bare ones as `a=` and `b=` where these are not given. Raises ExperimentError for one too many."""
    keys = [key for key in ("a", "b") if not any(word.startswith(f"{key}=") for word in words)]
    bare = [word for word in words if "=" not in word and not word.startswith("-")]
    if len(bare) > len(keys):
        raise ExperimentError(f'`{bare[len(keys)]}` is one too many: name two, A B; several seeds as a=[X,Y] or a="PATTERN"')
    free = iter(keys)
    return [f"{next(free)}={word}" if word in bare else word for word in words]


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: compare(cli.read("compare", CompareConfig, named(sys.argv[1:]), __doc__ or "")),
        CompareConfig,
    )


if __name__ == "__main__":
    main()

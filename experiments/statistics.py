"""Arithmetic and tables of an evaluation: interquartile means, intervals, paired differences, profiles.

Scores are (seeds, n): one row per training seed of a method (players have one row), one column per instance, the same
instances in the same order for everybody. Nothing here knows how they were played. The choice of measures follows Agarwal,
Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS
2021 (there: runs x tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.probes import PROBES

RESAMPLES = 4000  # of each bootstrap: the ends of a 95 % interval are then good to about 2 % of its width
BLOCK = 2**21  # numbers resampled at a time: 16 MB
TRAINED = "trained"  # the name of the policy among the players
EXACT = "exact_best"  # the name of the proven optimum, where there is one
LEAST_P = 1e-12  # p values below are not told apart
PARTS = ("base", "efficiency", "stability", "optimization")


def iqm(values: np.ndarray) -> np.ndarray:
    """The interquartile mean over the last axis: a quarter of the values is cut from either end (SciPy's `trim_mean`)."""
    n = values.shape[-1]
    cut = n // 4
    if cut == 0:
        return values.mean(axis=-1)
    return np.partition(values, (cut, n - cut - 1), axis=-1)[..., cut : n - cut].mean(axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean (...,) over all seeds and instances of `scores` (..., seeds, n)."""
    found: np.ndarray = scores.mean(axis=(-2, -1))
    return found


def centre(scores: np.ndarray) -> np.ndarray:
    """Mean and interquartile mean (..., 2) over all seeds and instances of `scores` (..., seeds, n)."""
    pooled = scores.reshape(*scores.shape[:-2], -1)
    return np.stack((pooled.mean(axis=-1), iqm(pooled)), axis=-1)


def performance_profile(scores: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """The share of scores (..., seeds, n) above each of the ascending `taus` (t,): (..., t). Agarwal et al., section 4.2."""
    below = np.searchsorted(taus, scores).reshape(-1, scores.shape[-2] * scores.shape[-1])  # thresholds under each score
    rows, bins = len(below), len(taus) + 1
    counts = np.bincount((below + bins * np.arange(rows)[:, None]).ravel(), minlength=rows * bins).reshape(rows, bins)
    above = counts[:, :0:-1].cumsum(axis=1)[:, ::-1] / below.shape[1]
    return above.reshape(*scores.shape[:-2], len(taus))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """P(A > B) (...,) over the instances and all pairs of seeds, one of `a` (..., seeds, n), one of `b`; equals count half.

    The Mann-Whitney statistic on each instance, averaged over instances (Agarwal et al., section 4.3, instances as tasks).
    """
    pairs = [np.sign(x - y).mean(axis=-1) for x in np.moveaxis(a, -2, 0) for y in np.moveaxis(b, -2, 0)]
    return (np.mean(pairs, axis=0) + 1) / 2


Statistic = Callable[..., np.ndarray]  # takes arrays (k, seeds, n), one for each method, and answers (k, ...)


class Error(NamedTuple):
    """How far averages over training seeds and instances may be off: the variance that comes of the seeds with its degrees of
    freedom, and that of the instances with its own; arrays of the shape of one answer."""

    seeds: np.ndarray
    seeds_freedom: np.ndarray
    instances: np.ndarray
    instances_freedom: int

    def half(self, alpha: float = 0.05) -> np.ndarray:
        """Half the width of the interval that misses the truth with a probability of at most `alpha`.

        Each variance has the Student's t of its own degrees of freedom, squared, before they are added: exact where either
        dominates and a little wide in between, for any number of seeds (Banerjee, "Approximate confidence interval for linear
        functions of means of k populations when the population variances are not equal", Sankhya 1960).
        """
        from scipy.special import stdtrit

        t = (stdtrit(freedom, alpha / 2) for freedom in (self.seeds_freedom, self.instances_freedom))
        half: np.ndarray = np.sqrt(sum(t**2 * v for t, v in zip(t, (self.seeds, self.instances), strict=True)))
        return half

    def p(self, distance: float) -> float:
        """Two-sided p of a single answer so far from what is held against it: the `alpha` of the interval that ends there."""
        low, high = np.log(LEAST_P), 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.half(np.exp(middle)) < abs(distance) else (middle, high)
        return float(np.exp(high))


def error(statistic: Statistic, *scores: np.ndarray) -> Error:
    """The error of `statistic(*scores)` by the jackknife: leaves out each training seed of each method, and each instance.

    Everybody played the same instances, so what makes one of them hard is shared: an instance is left out for all seeds and
    methods at once. Seeds of different methods are independent, and the degrees of freedom of their sum are Satterthwaite's. A
    method with one seed (a player) stands for itself. A bootstrap over a few seeds would not do: it takes the variance between
    S of them for (S - 1) / S of what it is, and knows nothing of degrees of freedom.

    Args:
        scores: (seeds, n) each; the seeds may differ in number, the instances are the same, at least two.
    """
    parts, freedoms = [], []
    for i, own in enumerate(scores):
        count = len(own)
        if count > 1:
            without = np.stack([np.delete(own, seed, axis=0) for seed in range(count)])
            parts.append(_jackknife(statistic(*(without if i == j else np.stack([s] * count) for j, s in enumerate(scores)))))
            freedoms.append(count - 1)
    n = scores[0].shape[1]
    block = max(1, BLOCK // sum(s.size for s in scores))
    answers = []
    for start in range(0, n, block):
        left_out, rest = np.arange(start, min(start + block, n))[:, None], np.arange(n - 1)
        answers.append(statistic(*(np.moveaxis(s[:, rest + (rest >= left_out)], 1, 0) for s in scores)))
    instances = _jackknife(np.concatenate(answers))
    seeds = sum(parts, np.zeros_like(instances))
    squares = sum((part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True)), np.zeros_like(instances))
    return Error(seeds, np.divide(seeds**2, squares, out=np.ones_like(seeds), where=squares > 0), instances, n - 1)


def _jackknife(answers: np.ndarray) -> np.ndarray:
    """The variance of an answer, from those (k, ...) without each of the k in turn."""
    variance: np.ndarray = (len(answers) - 1) * answers.var(axis=0)
    return variance


def confidence(
    statistic: Statistic, *scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of `statistic(*scores)` (seeds, n): of several training seeds by `error`, of one by the bootstrap.

    Returns:
        Low and high ends, each of the shape of one answer.
    """
    if all(len(s) == 1 for s in scores):
        return bootstrap(statistic, *scores, resamples=resamples, seed=seed)
    middle, half = statistic(*(s[None] for s in scores))[0], error(statistic, *scores).half()
    return middle - half, middle + half


def bootstrap(
    statistic: Statistic, *scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile-bootstrap interval of `statistic(*scores)` over the instances, which are drawn with replacement, the
    same for all of `scores` (seeds, n); what the seeds add is not in it. The same for the same scores."""
    rng = np.random.default_rng(seed)
    n = scores[0].shape[1]
    block = max(1, BLOCK // sum(s.size for s in scores))
    answers = []
    for start in range(0, resamples, block):
        instances = rng.integers(0, n, (min(block, resamples - start), n))
        answers.append(statistic(*(np.moveaxis(s[:, instances], 1, 0) for s in scores)))
    low, high = np.quantile(np.concatenate(answers), (0.025, 0.975), axis=0)
    return low, high


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of `values` (n,)."""
    low, high = bootstrap(mean, values[None], seed=seed)
    return float(low), float(high)


def lead(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How far `a` (seeds, n) is ahead of `b` (seeds, n), each with its 95 % interval, flat.

    `difference` of the means, `iqm_difference` of the interquartile means, `probability` of improvement; `_low`, `_high`; and
    `p`, two-sided, of a difference of means of 0.
    """

    def ahead(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.concatenate((centre(x) - centre(y), probability_of_improvement(x, y)[..., None]), axis=-1)

    found: dict[str, float] = {}
    low, high = confidence(ahead, a, b)
    low[-1], high[-1] = np.clip((low[-1], high[-1]), 0.0, 1.0)
    for i, name in enumerate(("difference", "iqm_difference", "probability")):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = (float(v[i]) for v in (ahead(a, b), low, high))
    return found | {"p": error(lambda x, y: mean(x) - mean(y), a, b).p(found["difference"])}


def holm(p: Mapping[Any, float]) -> dict[Any, float]:
    """p values corrected for their number, each at most 1 (Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 1979): those below 0.05 hold together with an error of at most 5 %."""
    corrected, highest = {}, 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[key]))
        corrected[key] = highest
    return {key: corrected[key] for key in p}


def perf(total: float, random: float, best: float) -> float:
    """(total - random) / (best - random): 0 plays like chance, 1 like the best known; 0 if those two are equal."""
    return (total - random) / (best - random) if best != random else 0.0


def totals(records: np.ndarray) -> np.ndarray:
    """The total scores (seeds, n) float64 of episode records (n,) or (seeds, n)."""
    return np.atleast_2d(np.asarray(records["total"], np.float64))


def summary(records: np.ndarray) -> dict[str, Any]:
    """A flat row of what episode records (n,) or (seeds, n) say by themselves.

    `seeds`, `n`; `mean`, `low`, `high` (score and its 95 % interval), `iqm`, `iqm_low`, `iqm_high`; means of `base`,
    `efficiency`, `stability`, `optimization`, `makespan` (s), the probes of `experiments.probes`, `solved` (share); None for
    what a bound, which has totals only, does not say.
    """
    scores, fields = totals(records), records.dtype.names or ()
    row: dict[str, Any] = {"seeds": len(scores), "n": scores.shape[1]}
    ends = (centre(scores), *confidence(centre, scores))
    row["mean"], row["low"], row["high"] = (float(v[0]) for v in ends)
    row["iqm"], row["iqm_low"], row["iqm_high"] = (float(v[1]) for v in ends)
    for part in (*PARTS, "makespan"):
        row[part] = float(records[part].mean()) if part in fields else None
    for name, probe in PROBES.items():
        row[name] = probe.of(records) if set(probe.fields) <= set(fields) else None
    row["solved"] = float((records["status"] == 1).mean()) if "status" in fields else None
    return row


def compare(episodes: Mapping[str, np.ndarray], policies: Collection[str] = (TRAINED,)) -> list[dict[str, Any]]:
    """One flat row per player, from its episode records (n,) or (seeds, n) on the same n instances in the same order.

    A row: `player`, `policy` (whether it was trained), `bound` (true for a proven optimum), what `summary` says, `perf`; and,
    but in the row of the reference, `against` (the reference's name) and what `lead` says: the reference minus this player,
    paired. The reference is the first policy, or the best rule if none was trained. The best known of `perf` is the proven
    optimum if it is among the players, else the best of those that were not trained.

    Raises:
        ValueError: players were not compared on the same instances.
    """
    _require_paired(episodes)
    scores = {name: totals(records) for name, records in episodes.items()}
    rules = {name: float(s.mean()) for name, s in scores.items() if name not in policies and name != EXACT}
    best = float(scores[EXACT].mean()) if EXACT in scores else max(rules.values())
    reference = next((name for name in scores if name in policies), max(rules, key=lambda name: rules[name]))
    table = []
    for name, records in episodes.items():
        row = {"player": name, "policy": name in policies, "bound": name == EXACT, **summary(records)}
        row["perf"] = perf(row["mean"], rules["random"], best)
        if name != reference:
            row |= {"against": reference, **lead(scores[reference], scores[name])}
        table.append(row)
    return table


def _require_paired(episodes: Mapping[str, np.ndarray]) -> None:
    seeds = [row for r in episodes.values() if "instance_seed" in (r.dtype.names or ()) for row in np.atleast_2d(r)]
    sizes = {records.shape[-1] for records in episodes.values()}
    if len(sizes) != 1 or any(not np.array_equal(seeds[0]["instance_seed"], other["instance_seed"]) for other in seeds[1:]):
        raise ValueError("the players did not play the same instances")


def ranged(row: Mapping[str, Any], key: str, low: str, high: str, form: str = ".4f") -> str:
    """A value with its interval: `0.6210 [0.6180, 0.6240]`."""
    return f"{row[key]:{form}} [{row[low]:{form}}, {row[high]:{form}}]"


def markdown(table: list[dict[str, Any]], probe: str = "") -> str:
    """The table as Markdown, best score first; `probe` names the field that shows whether the teaching was learned."""
    columns = {"perf": ("perf", ".3f"), **{part: (part, ".3f") for part in PARTS}, "makespan": ("makespan (s)", ".2f")}
    columns |= {probe: (PROBES[probe].words if probe in PROBES else probe, ".3f"), "solved": ("solved", ".3f")}
    columns = {key: how for key, how in columns.items() if any(row.get(key) is not None for row in table)}
    reference = next((row["against"] for row in table if "against" in row), None)
    titles = ["player", "mean score [95 %]", "IQM [95 %]", *(title for title, _ in columns.values())]
    titles += [f"lead of {reference} [95 %]"] if reference is not None else []
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in sorted(table, key=lambda r: -r["mean"]):
        name = f"**{row['player']}**" if row["policy"] else row["player"]
        cells = [name, ranged(row, "mean", "low", "high"), ranged(row, "iqm", "iqm_low", "iqm_high")]
        cells += ["–" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()]
        if reference is not None:
            cells.append(ranged(row, "difference", "difference_low", "difference_high", "+.4f") if "against" in row else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", footnote(table)])


def footnote(table: list[dict[str, Any]]) -> str:
    """What a table's numbers are: instances, seeds, what intervals are over, what perf relates to."""
    seeds = max(row["seeds"] for row in table)
    over = "instances" if seeds == 1 else f"instances and, where there are several, training seeds (up to {seeds})"
    text = f"{table[0]['n']:,} instances, the same for every player. IQM: mean of the middle half. Intervals: over {over}."
    if "perf" not in table[0]:
        return text
    best = "the proven optimum" if any(row["bound"] for row in table) else "the best player that is not trained"
    return f"{text} perf: 0 = random, 1 = {best}."

"""The arithmetic of a comparison, on numbers that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from experiments import statistics
from experiments.examiner import Examiner, Look
from experiments.export import choose_golden, margins

FIELDS = [
    *((name, "f8") for name in ("total", "base", "efficiency", "stability", "optimization", "makespan")),
    *((name, "i8") for name in ("calls", "cold_starts", "wrong_calls", "status")),
    ("instance_seed", "u8"),
]


def episodes(totals: list[float], seed: int = 0, **columns: float) -> np.ndarray:
    rows = np.zeros(len(totals), FIELDS)
    rows["total"] = totals
    rows["instance_seed"] = seed + np.arange(len(totals))
    for name, value in columns.items():
        rows[name] = value
    return rows


def test_compare() -> None:
    table = statistics.compare(
        {
            "trained": episodes([0.5, 0.7, 0.9], calls=4, cold_starts=1, status=1, makespan=2.5),
            "random": episodes([0.1, 0.2, 0.3], calls=3, cold_starts=3),
            "exact_best": np.array([(0.6,), (0.8,), (1.0,)], [("total", "f8")]),
        }
    )
    trained, random, exact = table
    assert trained["mean"] == pytest.approx(0.7)
    assert trained["perf"] == pytest.approx((0.7 - 0.2) / (0.8 - 0.2))
    assert (random["perf"], exact["perf"]) == (0.0, 1.0)
    assert trained["cold_starts_per_call"] == pytest.approx(0.25)
    assert random["cold_starts_per_call"] == 1.0
    assert trained["solved"] == 1.0
    assert trained["makespan"] == 2.5
    assert "difference" not in trained
    assert random["difference"] == pytest.approx(0.5)
    assert exact["difference"] == pytest.approx(-0.1)
    # The differences to the optimum are the same on every instance: paired, their interval has no width.
    assert exact["difference_low"] == pytest.approx(-0.1) == exact["difference_high"]
    assert exact["makespan"] is None
    text = statistics.markdown(table)
    assert text.splitlines()[2].startswith("| exact_best |")
    assert "lead of trained" in text
    assert "proven optimum" in text


def test_a_method_with_several_seeds() -> None:
    table = statistics.compare(
        {
            "ours": np.stack([episodes([0.5, 0.7], calls=4, cold_starts=1), episodes([0.7, 0.9], calls=4, cold_starts=3)]),
            "random": episodes([0.1, 0.3], calls=1),
            "fifo": episodes([0.4, 0.4], calls=1),
        },
        ["ours"],
    )
    ours, random, fifo = table
    assert (ours["seeds"], ours["n"], random["seeds"]) == (2, 2, 1)
    assert (ours["policy"], fifo["policy"]) == (True, False)
    assert ours["mean"] == pytest.approx(0.7) == pytest.approx(ours["iqm"])
    assert ours["cold_starts_per_call"] == pytest.approx(0.5)
    assert ours["perf"] == pytest.approx((0.7 - 0.2) / (0.4 - 0.2))
    assert (random["against"], random["difference"]) == ("ours", pytest.approx(0.5))
    assert random["probability"] == 1.0
    assert "up to 2" in statistics.markdown(table)


def test_without_a_policy_the_best_rule_is_the_reference() -> None:
    table = statistics.compare(
        {"random": episodes([0.1, 0.2]), "fifo": episodes([0.4, 0.5]), "late": episodes([0.3, 0.5])}, []
    )
    assert [row.get("against") for row in table] == ["fifo", None, "fifo"]


def test_best_known_without_a_proof_is_the_best_other_player() -> None:
    table = statistics.compare({"trained": episodes([1.0, 1.0]), "random": episodes([0.0, 0.0]), "fifo": episodes([0.5, 0.5])})
    assert [row["perf"] for row in table] == [2.0, 0.0, 1.0]


def test_players_on_different_instances_are_refused() -> None:
    with pytest.raises(ValueError, match="same instances"):
        statistics.compare({"random": episodes([0.1, 0.2]), "fifo": episodes([0.1, 0.2], seed=9)})


def test_interval_covers_the_mean_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = statistics.interval(rng.normal(1.0, 0.5, 100))
        covered += low <= 1.0 <= high
    assert 88 <= covered <= 100
    values = rng.normal(size=64)
    assert statistics.interval(values) == statistics.interval(values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 100, 101])
def test_iqm_is_scipys_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(3, n))
    assert statistics.iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))


def test_iqm_by_hand() -> None:
    assert statistics.iqm(np.array([9.0, 1.0, 3.0, -50.0])) == 2.0  # -50 and 9 are cut
    assert statistics.centre(np.array([[9.0, 1.0], [3.0, -50.0]])) == pytest.approx([-9.25, 2.0])


def test_performance_profile_by_hand() -> None:
    scores = np.array([[0.1, 0.5], [0.5, 0.9]])
    taus = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    expected = [1.0, 0.75, 0.25, 0.0, 0.0]  # a score equal to the threshold is not above it
    assert statistics.performance_profile(scores, taus).tolist() == expected
    several = statistics.performance_profile(np.stack([scores, scores - 0.2]), taus)
    assert several.tolist() == [expected, [0.75, 0.75, 0.25, 0.0, 0.0]]


def test_probability_of_improvement() -> None:
    a, b = np.array([[0.5, 0.5, 0.9]]), np.array([[0.4, 0.5, 0.95]])
    assert statistics.probability_of_improvement(a, b) == pytest.approx((1 + 0.5 + 0) / 3)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (5, 1)).astype(float), rng.integers(1, 7, (4, 1)).astype(float)
    u = stats.mannwhitneyu(a[:, 0], b[:, 0]).statistic  # of one instance: the statistic itself
    assert statistics.probability_of_improvement(a, b) == pytest.approx(u / 20)
    assert statistics.probability_of_improvement(a, b) + statistics.probability_of_improvement(b, a) == pytest.approx(1)


def width(*scores: np.ndarray, statistic: Callable[..., np.ndarray] = lambda s: s.mean(axis=(-2, -1))) -> float:
    low, high = statistics.confidence(statistic, *scores)
    return float(high - low)


def test_what_an_interval_is_over() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 200))
    # Seeds that play alike add nothing: the instances are the same for all of them, and are left out at once.
    assert width(np.repeat(one, 8, axis=0)) == pytest.approx(width(one), rel=0.1)
    assert width(one) == pytest.approx(2 * 1.96 * one.std() / np.sqrt(200), rel=0.1)
    # Instances that are alike leave the spread of the seeds.
    seeds = np.repeat(rng.normal(size=(40, 1)), 50, axis=1)
    assert width(seeds) == pytest.approx(2 * 1.96 * seeds.std() / np.sqrt(40), rel=0.1)
    # Paired: what both find hard cancels.
    assert width(one, one - 0.1, statistic=lambda a, b: (a - b).mean(axis=(-2, -1))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_in_small_blocks_is_the_same_interval(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=(seeds, 100))
    whole = statistics.confidence(statistics.centre, scores)
    shapes: list[int] = []

    def centre(block: np.ndarray) -> np.ndarray:
        shapes.append(len(block))
        return statistics.centre(block)

    monkeypatch.setattr(statistics, "BLOCK", seeds * 100 * 7)
    parts = statistics.confidence(centre, scores)
    assert max(shapes) == 7
    assert sum(shapes) == (statistics.RESAMPLES if seeds == 1 else 1 + seeds + 100)  # the answer, without each seed, instance
    assert np.abs(np.array(parts) - np.array(whole)).max() < 1e-12


def test_intervals_over_seeds_and_instances_cover_at_their_rate() -> None:
    """Scores with effects of the seed, of the instance and of both: 12 seeds on 100 instances, 100 times."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        scores = rng.normal(0, 0.2, (12, 1)) + rng.normal(0, 1, (1, 100)) + rng.normal(0, 0.3, (12, 100))
        low, high = statistics.confidence(lambda s: s.mean(axis=(-2, -1)), scores, resamples=500)
        covered += low <= 0 <= high
    assert 88 <= covered <= 100


def drawn(rng: np.random.Generator, seeds: int, of_seed: float, of_instance: float) -> np.ndarray:
    """Scores (seeds, 20) about 0, 10,000 times (the last axis): effects of the seed, of the instance, and a little of both."""
    sizes = ((of_seed, (seeds, 1, 10_000)), (of_instance, (1, 20, 10_000)), (0.1 * of_instance, (seeds, 20, 10_000)))
    return sum((rng.normal(0, deviation, size) for deviation, size in sizes), np.zeros(()))


def middle(scores: np.ndarray) -> np.ndarray:
    """The means (k, 10,000) of arrays (k, seeds, 20, 10,000)."""
    return np.asarray(scores.mean(axis=(1, 2)))


@pytest.mark.parametrize("of_instance", [0.1, 1.5, 3.0, 100.0])  # at 3 both count for about as much
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_give_intervals_that_hold_the_truth(seeds: int, of_instance: float) -> None:
    """A percentile bootstrap over three seeds that dominate holds it three times of four."""
    scores = drawn(np.random.default_rng(0), seeds, 1.0, of_instance)
    off, error = np.abs(scores.mean(axis=(0, 1))), statistics.error(middle, scores)
    assert 0.94 <= (off <= error.half()).mean() <= 0.99
    assert (off <= error.half(0.01)).mean() >= 0.986  # as what is corrected for many comparisons needs it


@pytest.mark.parametrize("of_instance", [0.1, 100.0])
@pytest.mark.parametrize("other", [1.0, 0.3])
@pytest.mark.parametrize("seeds", [3, 5])
def test_few_seeds_on_both_sides_give_leads_that_hold_the_truth(seeds: int, other: float, of_instance: float) -> None:
    """The seeds of the other side differ as much, or less."""
    rng = np.random.default_rng(0)
    a, b = drawn(rng, seeds, 1.0, of_instance), drawn(rng, seeds, other, of_instance)
    held = (
        np.abs((a.mean(axis=0) - b.mean(axis=0)).mean(axis=0))
        <= statistics.error(lambda x, y: middle(x) - middle(y), a, b).half()
    )
    assert 0.94 <= held.mean() <= 0.99


def test_the_error_of_a_mean_by_hand() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 8.0]])
    found = statistics.error(statistics.mean, scores)
    assert found.seeds == pytest.approx(scores.mean(axis=1).var(ddof=1) / 3) and found.seeds_freedom == pytest.approx(2)
    assert found.instances == pytest.approx(scores.mean(axis=0).var(ddof=1) / 3) and found.instances_freedom == 2
    assert found.half() == pytest.approx(4.302653 * np.sqrt(found.seeds + found.instances), rel=1e-6)
    two = statistics.error(lambda a, b: statistics.mean(a) - statistics.mean(b), scores, scores[:2] * 2)
    parts = scores.mean(axis=1).var(ddof=1) / 3, (scores[:2] * 2).mean(axis=1).var(ddof=1) / 2
    assert two.seeds == pytest.approx(sum(parts))
    assert two.seeds_freedom == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1))  # Welch's


def test_p_is_that_of_a_t_test() -> None:
    """Of seeds alone, of instances alone; and 5 % where the interval of a lead ends at zero."""
    rng = np.random.default_rng(0)
    leads = np.array([0.01, 0.02, 0.06])
    alike = np.repeat(leads[:, None], 20, axis=1)
    assert statistics.error(statistics.mean, alike).p(leads.mean()) == pytest.approx(stats.ttest_1samp(leads, 0).pvalue)
    one = rng.normal(0.1, 1, 50)
    assert statistics.error(statistics.mean, one[None]).p(one.mean()) == pytest.approx(stats.ttest_1samp(one, 0).pvalue)
    a, b = rng.normal(0, 1, (3, 50)), np.zeros((1, 50))
    ends = statistics.lead(a, b)["difference_low"], statistics.lead(a, b)["difference_high"]
    assert [statistics.lead(a - end, b)["p"] for end in ends] == pytest.approx([0.05, 0.05])
    assert statistics.lead(a - a.mean(), b)["p"] == pytest.approx(1.0)
    assert statistics.lead(b, b)["p"] == 1.0
    assert statistics.lead(b + 1, b)["p"] == pytest.approx(statistics.LEAST_P)


def examiner(perfs: list[float], *, proven: bool = False, when_solved: bool = True) -> Examiner:
    stop = SimpleNamespace(when_solved=when_solved, patience=3, progress=0.01, mastery=0.99)
    made = Examiner(SimpleNamespace(stop=stop), SimpleNamespace(level=SimpleNamespace(pass_mark=0.8)), "full")  # type: ignore[arg-type]
    made.looks = [Look(i, perf, perf) for i, perf in enumerate(perfs)]
    made.proven = proven
    return made


def test_when_a_training_stops() -> None:
    assert examiner([0.5, 0.5, 0.5, 0.5, 0.5]).verdict() is None, "without progress, but not solved"
    assert examiner([0.5, 0.9, 0.9, 0.9]).verdict() is None, "solved, still patient"
    assert "no progress" in str(examiner([0.5, 0.9, 0.9, 0.9, 0.9]).verdict())
    assert examiner([0.5, 0.9, 0.92, 0.94, 0.96]).verdict() is None, "solved and getting better"
    assert examiner([0.5, 0.995]).verdict() is None, "no proven optimum: better may be possible"
    assert "mastered" in str(examiner([0.5, 0.995], proven=True).verdict())
    assert examiner([0.9] * 9, when_solved=False).verdict() is None


def test_golden_vectors_are_clear_decisions() -> None:
    logits = np.zeros((4, 128), np.float32)
    masks = np.zeros((4, 128), bool)
    masks[:, :2] = True
    masks[3, 1] = False
    logits[0, 0] = 1e-4  # too close
    logits[1, 1] = 0.5
    logits[2, :2] = (3.0, 1.0)
    logits[2, 5] = 9.0  # illegal, so it does not count
    assert margins(logits, masks) == pytest.approx([1e-4, 0.5, 2.0, np.inf])
    assert choose_golden(logits, masks, 64).tolist() == [1, 2]
    assert choose_golden(logits[3:], masks[3:], 64).tolist() == [0]


def test_holm_corrects_for_their_number_and_keeps_the_order() -> None:
    """The example of three hypotheses by hand: 3 x 0.01, 2 x 0.02, then no less than the one before."""
    assert statistics.holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})
    assert statistics.holm({1: 0.9, 2: 0.6}) == {1: 1.0, 2: 1.0}

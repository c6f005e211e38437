"""The arithmetic of a comparison, on numbers that can be checked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import statistics
from experiments.callbacks import Examiner, Look
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
    assert "proven optimum" in text


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

"""The instruments of the data example: handwritten digits go through SQLite, classifiers learn them, and a vote decides.

The pictures are the 1,797 of scikit-learn's own package. Two models, a *wide* and a *narrow* describer, learn in the worker
process which features describe a picture (without its label) before they serve.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers at once are threads enough
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from conductor.instruments import CallError, Job, Result

QUESTIONS: dict[str, Callable[[int], int]] = {"digit": lambda digit: digit, "prime": lambda digit: int(digit in (2, 3, 5, 7))}


# --------------------------------------------------------------------------- models
class Describer:
    """Features of pictures, learned from all of them."""

    def __init__(self, kind: str, features: int) -> None:
        """`kind`: "wide" (likeness to typical pictures) or "narrow" (principal components)."""
        from sklearn.datasets import load_digits
        from sklearn.decomposition import PCA
        from sklearn.kernel_approximation import Nystroem

        wide = kind == "wide"
        self._map = Nystroem(gamma=0.001, n_components=features, random_state=0) if wide else PCA(features, random_state=0)
        self._map.fit(load_digits().data)

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """(n, 64) -> (n, features)."""
        return np.asarray(self._map.transform(pictures))


def load_describer(kind: str, features: int) -> Describer:
    """Learn the features."""
    return Describer(kind, features)


# --------------------------------------------------------------------------- the functions of the workflow
def collect(job: Job) -> Any:
    """Write the pictures into a database as they come in: shuffled, some twice, some with pixels missing."""
    from sklearn.datasets import load_digits

    digits, source = load_digits(), random.Random(7)
    rows = [([int(x) for x in pixels], int(digit)) for pixels, digit in zip(digits.data, digits.target, strict=True)]
    rows += source.sample(rows, 60)
    source.shuffle(rows)
    path = job.folder / "digits.sqlite"
    scratch = path.with_suffix(".part")
    scratch.unlink(missing_ok=True)
    with sqlite3.connect(scratch) as base:
        base.execute("CREATE TABLE incoming (number INTEGER PRIMARY KEY, pixels TEXT, digit INTEGER)")
        for pixels, digit in rows:
            seen = [None if source.random() < 0.0005 else x for x in pixels]
            base.execute("INSERT INTO incoming (pixels, digit) VALUES (?, ?)", (json.dumps(seen), digit))
    base.close()
    scratch.replace(path)
    return {"file": path.name, "rows": len(rows)}


def clean(job: Job) -> Any:
    """Leave out what came twice or is incomplete, and say which rows are for training, for validation and for the test."""
    path = job.folder / "digits.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("DROP TABLE IF EXISTS pictures")
        base.execute("CREATE TABLE pictures (number INTEGER PRIMARY KEY, pixels TEXT, digit INTEGER, role TEXT)")
        base.execute(
            "INSERT INTO pictures (pixels, digit, role) SELECT pixels, digit, "
            "CASE min(number) % 4 WHEN 2 THEN 'valid' WHEN 3 THEN 'test' ELSE 'train' END "
            "FROM incoming WHERE pixels NOT LIKE '%null%' GROUP BY pixels, digit ORDER BY min(number)"
        )
        counts = dict(base.execute("SELECT role, count(*) FROM pictures GROUP BY role"))
    base.close()
    return {"file": path.name, "counts": counts}


def _pictures(folder: Path, question: str, role: str) -> tuple[np.ndarray, np.ndarray]:
    """(pictures (n, 64), answers (n,)) of a role."""
    with sqlite3.connect(f"file:{folder / 'digits.sqlite'}?mode=ro", uri=True) as base:
        rows = base.execute("SELECT pixels, digit FROM pictures WHERE role = ? ORDER BY number", (role,)).fetchall()
    base.close()
    return np.array([json.loads(pixels) for pixels, _ in rows], float), np.array([QUESTIONS[question](d) for _, d in rows])


def _learned(job: Job, classifier: Any) -> Any:
    """Fit on training rows; the quality is measured on validation rows; the answers to the test are the output."""
    question = job.args["question"]
    describe = job.model.features if job.model is not None else np.asarray
    pictures, answers = _pictures(job.folder, question, "train")
    classifier.fit(describe(pictures), answers)
    pictures, answers = _pictures(job.folder, question, "valid")
    right = float((classifier.predict(describe(pictures)) == answers).mean())
    chosen = classifier.predict(describe(_pictures(job.folder, question, "test")[0]))
    return Result({"question": question, "valid": right, "answers": [int(x) for x in chosen]}, quality=right)


def linear(job: Job) -> Any:
    """Logistic regression on described pictures. One that has not converged fails, and goes further when it is tried again."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    steps = 15 * 8 ** (job.attempt - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return _learned(job, LogisticRegression(C=10.0, max_iter=steps))
        except ConvergenceWarning as error:
            raise CallError(f"the regression has not converged within {steps} steps") from error


def neighbours(job: Job) -> Any:
    """The nearest described pictures."""
    from sklearn.neighbors import KNeighborsClassifier

    return _learned(job, KNeighborsClassifier(3))


def forest(job: Job) -> Any:
    """Trees on the bare pixels: 150 of them, or a few small ones."""
    from sklearn.ensemble import RandomForestClassifier

    small = job.variant == "lite"
    return _learned(job, RandomForestClassifier(12 if small else 150, max_depth=4 if small else None, random_state=0))


def vote(job: Job) -> Any:
    """Every classifier votes with its weight (the odds that it is right); the quality is the share of right test answers."""
    ballots = list(job.inputs.values())
    question = ballots[0]["question"]
    _, truth = _pictures(job.folder, question, "test")
    weights = [b["valid"] / max(1e-3, 1.0 - b["valid"]) for b in ballots]
    answers = np.array([b["answers"] for b in ballots])  # (classifiers, n)
    kinds = np.unique(answers)
    votes = np.array([[w * (row == kind) for row, w in zip(answers, weights, strict=True)] for kind in kinds]).sum(axis=1)
    right = float((kinds[votes.argmax(axis=0)] == truth).mean())
    return Result({"question": question, "right": right, "voters": [b["valid"] for b in ballots]}, quality=right)


def report(job: Job) -> Any:
    """Write `report.md`; the quality is the mean share of right answers."""
    rows = sorted(job.inputs.values(), key=lambda row: row["question"])
    lines = ["# Data", "", "| question | voters, validation | vote, test |", "|---|---|---|"]
    lines += [f"| {r['question']} | {', '.join(f'{v:.3f}' for v in r['voters'])} | {r['right']:.4f} |" for r in rows]
    mean = statistics.fmean(row["right"] for row in rows)
    scratch = job.folder / "report.part"
    scratch.write_text("\n".join([*lines, "", f"Mean share of right answers: {mean:.4f}", ""]))
    scratch.replace(job.folder / "report.md")
    return Result({"file": "report.md", "mean": mean, "right": {r["question"]: r["right"] for r in rows}}, quality=mean)

"""The instruments of the code forge: it really searches for programs, polishes, tests and times them; nothing is canned.

Two kinds of model, each in a small and a large size, are built in the worker process before it serves: a *library* of distinct
programs over lists of integers (what `draft` searches) and a *reader*, a character n-gram model of the standard library's own
sources (what `polish` asks which names read best).
"""

from __future__ import annotations

import math
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from conductor.instruments import CallError, Job, Result


# --------------------------------------------------------------------------- problems
class Problem(NamedTuple):
    """What is asked for, and the reference that makes examples and hidden tests; no instrument but `_cases` may look at it."""

    text: str
    reference: Callable[[list[int]], int]


PROBLEMS = {
    "largest_jump": Problem("the largest distance between neighbours", lambda v: max(abs(b - a) for a, b in pairwise(v))),
    "positive_weight": Problem(
        "the sum of the positive numbers times how many numbers there are", lambda v: sum(x for x in v if x > 0) * len(v)
    ),
    "second_largest": Problem("the second largest of the different numbers", lambda v: sorted(set(v))[-2]),
    "zigzag": Problem("the sum of every second number less the sum of the others", lambda v: sum(v[::2]) - sum(v[1::2])),
}


def _cases(name: str, purpose: str, count: int) -> list[tuple[list[int], int]]:
    """(numbers, answer) pairs of a problem; `purpose` keeps examples and hidden tests apart."""
    source = random.Random(f"{name}/{purpose}")
    lists = [[source.randint(-9, 9) for _ in range(source.randint(4, 9))] for _ in range(count)]
    return [(numbers, PROBLEMS[name].reference(numbers)) for numbers in lists]


# --------------------------------------------------------------------------- the library: a model of programs
LIST_STEPS: list[tuple[str, Callable[[list[int]], list[int]]]] = [
    ("sorted({})", sorted),
    ("{}[::-1]", lambda v: v[::-1]),
    ("{}[::2]", lambda v: v[::2]),
    ("{}[1::2]", lambda v: v[1::2]),
    ("{}[1:]", lambda v: v[1:]),
    ("{}[:-1]", lambda v: v[:-1]),
    ("sorted(set({}))", lambda v: sorted(set(v))),
    ("[x * x for x in {}]", lambda v: [x * x for x in v]),
    ("[abs(x) for x in {}]", lambda v: [abs(x) for x in v]),
    ("[x for x in {} if x % 2 == 0]", lambda v: [x for x in v if x % 2 == 0]),
    ("[x for x in {} if x % 2 == 1]", lambda v: [x for x in v if x % 2 == 1]),
    ("[x for x in {} if x > 0]", lambda v: [x for x in v if x > 0]),
    ("list(accumulate({}))", lambda v: list(accumulate(v))),
    ("[y - x for x, y in zip({0}, {0}[1:])]", lambda v: [y - x for x, y in pairwise(v)]),
]
FOLDS: list[tuple[str, Callable[[list[int]], int]]] = [
    ("sum({})", sum),
    ("max({})", max),
    ("min({})", min),
    ("len({})", len),
    ("{}[0]", lambda v: v[0]),
    ("{}[-1]", lambda v: v[-1]),
]
JOINS: list[tuple[str, Callable[[int, int], int]]] = [
    ("{} + {}", lambda a, b: a + b),
    ("{} - {}", lambda a, b: a - b),
    ("{} * {}", lambda a, b: a * b),
]


class Program(NamedTuple):
    """A node of the library: its text over `xs`, how it follows from earlier nodes, and whether its value is a number."""

    text: str
    function: Callable[..., Any] | None
    inputs: tuple[int, ...]
    number: bool


class Library:
    """Programs in order of size, no two of which agree on all probe lists."""

    def __init__(self, depth: int, joined: int) -> None:
        """`depth`: list steps in a row; `joined`: how many of the first numbers are joined in pairs."""
        source = random.Random("probes")
        probes = [[source.randint(-9, 9) for _ in range(source.randint(4, 9))] for _ in range(16)]
        self.programs = [Program("xs", None, (), False)]
        self._values: list[list[Any]] = [probes]
        self._seen = {repr(probes)}
        newest = [0]
        for _ in range(depth):
            newest = [k for i, (text, step) in product(newest, LIST_STEPS) if (k := self._add(text, step, (i,), False)) >= 0]
        lists = range(len(self.programs))
        numbers = [k for i, (text, fold) in product(lists, FOLDS) if (k := self._add(text, fold, (i,), True)) >= 0]
        for (i, j), (text, join) in product(product(numbers[:joined], repeat=2), JOINS):
            self._add(text, join, (i, j), True)
        del self._values, self._seen

    def _add(self, text: str, function: Callable[..., Any], inputs: tuple[int, ...], number: bool) -> int:
        columns = [self._values[i] for i in inputs]
        values = [_apply(function, arguments) for arguments in zip(*columns, strict=True)]
        key = repr(values)
        if key in self._seen or values.count(None) > 2:
            return -1
        self._seen.add(key)
        self._values.append(values)
        self.programs.append(Program(text.format(*(self.programs[i].text for i in inputs)), function, inputs, number))
        return len(self.programs) - 1

    def search(self, cases: list[tuple[list[int], int]], budget: int, wanted: int) -> tuple[list[str], int]:
        """The first programs (at most `wanted`, within `budget`) that fit all cases, else the best; and how many it fits."""
        inputs, answers = [numbers for numbers, _ in cases], [answer for _, answer in cases]
        values: list[list[Any]] = []
        found: list[str] = []
        best, most = "", -1
        for program in self.programs[:budget]:
            columns = [values[i] for i in program.inputs]
            row = inputs if program.function is None else [_apply(program.function, a) for a in zip(*columns, strict=True)]
            values.append(row)
            if program.number:
                hits = sum(a == b for a, b in zip(row, answers, strict=True))
                if hits == len(cases):
                    found.append(program.text)
                    if len(found) == wanted:
                        break
                if hits > most:
                    best, most = program.text, hits
        return (found, len(cases)) if found else ([best], most)


def _apply(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return None if None in arguments else function(*arguments)
    except (ValueError, IndexError):  # max() of nothing
        return None


def load_library(depth: int, joined: int) -> Library:
    """Enumerate a library."""
    return Library(depth, joined)


# --------------------------------------------------------------------------- the reader: a model of source text
class Reader:
    """A character n-gram model with back-off, counted over sources of the standard library."""

    def __init__(self, order: int, kilobytes: int) -> None:
        self._order = order
        self._counts: Counter[str] = Counter()
        left = kilobytes * 1024
        for path in sorted(Path(os.__file__).parent.glob("*.py")):
            text = path.read_text("utf-8", errors="replace")[:left]
            for n in range(1, order + 1):
                self._counts.update(text[i : i + n] for i in range(len(text) - n + 1))
            left -= len(text)
            if left <= 0:
                break

    def bits(self, text: str) -> float:
        """Bits per character: how surprising the text is to a reader of the standard library."""
        total = 0.0
        for i in range(len(text)):
            penalty = 1.0
            for n in range(min(self._order, i + 1), 0, -1):
                seen = self._counts[text[i - n + 1 : i + 1]]
                if seen:
                    total -= math.log2(penalty * seen / (self._counts[text[i - n + 1 : i]] if n > 1 else 1e6))
                    break
                penalty *= 0.4
            else:
                total += 20.0
        return total / len(text)


def load_reader(order: int, kilobytes: int) -> Reader:
    """Count n-grams."""
    return Reader(order, kilobytes)


# --------------------------------------------------------------------------- the functions of the workflow
LISTS = ("values", "numbers", "items", "data", "seq", "args", "parts", "xs", "nums", "row", "elements", "entries", "points")
ITEMS = ("x", "y", "v", "n", "i", "item", "value", "other")
RESULTS = ("", "result", "total", "answer", "best", "out", "ret", "count")


def draft(job: Job) -> Any:
    """Search the library for programs that fit the problem's examples; one that runs out of budget fails and may search on: a
    note says how far it went, for an attempt that was merely lost has found nothing out."""
    lite = job.variant == "lite"
    cases = _cases(job.args["problem"], "examples", 4 if lite else 40)
    note = job.folder / f"{job.args['problem']}.searched"
    budget = 8 * (int(note.read_text()) if note.exists() and not lite else 700)
    programs, hits = job.model.search(cases, budget, 3)
    if hits < len(cases) and not lite:
        scratch = note.with_suffix(".part")
        scratch.write_text(str(budget))
        scratch.replace(note)
        raise CallError(f"none of the first {budget} programs fits all {len(cases)} examples of {job.args['problem']}")
    return {"problem": job.args["problem"], "programs": programs, "examples": f"{hits} of {len(cases)}"}


def polish(job: Job) -> Any:
    """Write the programs out as functions with the names that the reader finds least surprising; the file is the artifact."""
    (drafted,) = job.inputs.values()
    sources, bits = [], []
    for number, program in enumerate(drafted["programs"]):
        choices = {
            _written(number, program, *names) for names in product(LISTS, ITEMS, ITEMS, RESULTS) if names[1] != names[2]
        }
        scored = min((job.model.bits(text), text) for text in choices)
        bits.append(round(scored[0], 4))
        sources.append(scored[1])
    text = f'"""{PROBLEMS[drafted["problem"]].text}"""\n\nfrom itertools import accumulate\n\n\n' + "\n\n".join(sources)
    path = job.folder / f"{drafted['problem']}.py"
    scratch = path.with_suffix(".part")
    scratch.write_text(text)
    scratch.replace(path)
    return {**drafted, "file": path.name, "source": text, "bits": bits}


def _written(number: int, program: str, values: str, first: str, second: str, result: str) -> str:
    for old, new in (("xs", values), ("x", first), ("y", second)):
        program = re.sub(rf"\b{old}\b", f"<{new}>", program)  # marked, so that no new name is renamed again
    program = re.sub(r"<(\w+)>", r"\1", program)
    body = f"    {result} = {program}\n    return {result}\n" if result else f"    return {program}\n"
    return f"def solve_{number}({values}):\n{body}"


def _solutions(polished: dict[str, Any]) -> list[Callable[[list[int]], int]]:
    space: dict[str, Any] = {}
    exec(polished["source"], space)
    return [space[f"solve_{i}"] for i in range(len(polished["programs"]))]


def check(job: Job) -> Any:
    """Run every candidate on 200 hidden tests; the quality is the best one's share of right answers."""
    polished = job.inputs[job.args["of"]]
    cases = _cases(polished["problem"], "hidden", 200)
    shares = [sum(_apply(f, (list(v),)) == answer for v, answer in cases) / len(cases) for f in _solutions(polished)]
    return Result({"shares": shares}, quality=max(shares))


def measure(job: Job) -> Any:
    """Time every candidate; a measurement that scatters is refused and made again (the third is taken as it is)."""
    functions = _solutions(job.inputs[job.args["of"]])
    numbers = [random.Random(7).randint(-9, 9) for _ in range(3000)]
    microseconds = []
    for function in functions:
        samples = []
        for _ in range(25):
            begin = time.perf_counter()
            for _ in range(40):
                _apply(function, (numbers,))
            samples.append((time.perf_counter() - begin) / 40 * 1e6)
        scatter = statistics.median(abs(s - statistics.median(samples)) for s in samples) / statistics.median(samples)
        if scatter > 0.1 and job.attempt < 3:
            raise CallError(f"the timing scatters by {scatter:.0%}; the machine is busy")
        microseconds.append(round(min(samples), 2))
    return {"microseconds": microseconds}


def pick(job: Job) -> Any:
    """The candidate with the most right answers; among equals the one that reads best, then the fastest."""
    polished, checked, timed = (job.inputs[job.args[k]] for k in ("of", "checked", "timed"))
    rows = list(zip(checked["shares"], polished["bits"], timed["microseconds"], polished["programs"], strict=True))
    share, bits, microseconds, program = min(rows, key=lambda row: (-row[0], row[1], row[2]))
    picked = {"program": program, "share": share, "bits": bits, "microseconds": microseconds, "candidates": len(rows)}
    return Result({"problem": polished["problem"], "file": polished["file"], **picked}, quality=share)


def report(job: Job) -> Any:
    """Write `report.md`; the quality is the mean share of hidden tests that the picked programs pass."""
    picked = sorted(job.inputs.values(), key=lambda row: row["problem"])
    lines = ["# Code forge", "", "| problem | program | hidden tests | bits/char | µs |", "|---|---|---|---|---|"]
    for row in picked:
        lines.append(
            f"| {PROBLEMS[row['problem']].text} | `{row['program']}` | {row['share']:.1%} "
            f"| {row['bits']} | {row['microseconds']} |"
        )
    mean = statistics.fmean(row["share"] for row in picked)
    lines += ["", f"Mean share of hidden tests passed: {mean:.4f}", ""]
    scratch = job.folder / "report.part"
    scratch.write_text("\n".join(lines))
    scratch.replace(job.folder / "report.md")
    return Result(
        {"file": "report.md", "mean": mean, "programs": {row["problem"]: row["program"] for row in picked}}, quality=mean
    )

"""A file with mistakes is refused in a sentence or plays: never a crash, a hang, or a number that is not finite.

300 mutations by default, as many as `FQ_MUTATIONS` says otherwise. They run in a process of their own, whose death or silence
is told from outside; the seed of each fault is named: `python -m tests.fq_env.level_fuzz SEED SEED+1` repeats it.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

MUTATIONS = int(os.environ.get("FQ_MUTATIONS", "300"))
COMPILING, SILENCE = 180.0, 10.0  # s without a line: until it is ready, and from one mutation to the next


def run(root: Path, first: int, last: int, module: str = "tests.fq_env.level_fuzz") -> tuple[dict[int, str], str]:
    """Seed -> outcome of the mutations first..last - 1, as far as the process came, and why it came no further."""
    command = [sys.executable, "-m", module, str(first), str(last)]
    errors = subprocess.STDOUT
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as process:
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        outcomes: dict[int, str] = {}
        patience = COMPILING
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                process.kill()
                return outcomes, f"nothing for {patience} s"
            if line is None:
                break
            word, _, rest = line.partition(" ")
            if word == "ready\n":
                patience = SILENCE
            elif word.isdigit():
                outcomes[int(word)] = rest.strip()
    return outcomes, "" if process.returncode == 0 else f"the process ended with {process.returncode}"


def run_all(root: Path, count: int, module: str = "tests.fq_env.level_fuzz") -> dict[int, str]:
    """Seed -> outcome of so many mutations, whatever happens to the processes that try them."""
    outcomes: dict[int, str] = {}
    while len(outcomes) < count:
        found, why = run(root, len(outcomes), count, module)
        outcomes |= found
        if why:
            outcomes[len(outcomes)] = f"fault {why}"
    return outcomes


def test_mutated_files_are_refused_or_play(root):
    outcomes = run_all(root, MUTATIONS)
    faults = {seed: outcome for seed, outcome in outcomes.items() if outcome.startswith("fault")}
    assert not faults, faults
    played = sum(outcome == "played" for outcome in outcomes.values())
    assert 0.1 < played / MUTATIONS < 0.6, "the mutations should leave some files sound, and break most"

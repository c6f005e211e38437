"""Runs mutations in processes of their own, whose death or silence is told from outside.

A module of mutations prints `ready`, then a line `SEED OUTCOME` for each; `python -m MODULE SEED SEED+1` repeats one.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

CPU = 1.0  # s of processor time that one mutation may take: a busy machine makes no difference to it
COMPILING, SILENCE = 600.0, 300.0  # s without a line, on a busy machine: until it is ready; and from who waits for ever
LOOK = 0.1  # s between two looks at who says nothing


def asked(default: int) -> int:
    """How many mutations to try: `FQ_MUTATIONS`, or so many."""
    return int(os.environ.get("FQ_MUTATIONS", default))


def cpu_of(process: int) -> float:
    """Seconds of processor time that a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(root: Path, module: str, first: int, last: int) -> tuple[dict[int, str], str]:
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
        ready = False
        spent, since, looks = 0.0, time.monotonic(), 0
        while True:
            try:
                line = lines.get(timeout=LOOK)
            except queue.Empty:
                taken, waited = cpu_of(process.pid) - spent, time.monotonic() - since
                looks += (ready and taken > CPU) or waited > (SILENCE if ready else COMPILING)
                if looks > 1:  # in between, what had been said was read, if `read` had had to wait for its turn
                    process.kill()
                    return outcomes, f"nothing for {taken:.2f} s of CPU, {waited:.0f} s on the wall"
                continue
            looks = 0
            if line is None:
                break
            word, _, rest = line.partition(" ")
            if word == "ready\n":
                ready = True
            elif word.isdigit():
                outcomes[int(word)] = rest.strip()
            elif word == "measured":
                print(line, end="")
            if lines.empty():  # the next mutation may have begun already, and not long ago
                spent, since = cpu_of(process.pid), time.monotonic()
    return outcomes, "" if process.returncode == 0 else f"the process ended with {process.returncode}"


def outcomes(root: Path, module: str, count: int) -> dict[int, str]:
    """The outcomes of the mutations 0..count - 1; a death or a silence is the outcome of the one at which it came."""
    found: dict[int, str] = {}
    while len(found) < count:
        more, why = run(root, module, len(found), count)
        found |= more
        if why:
            found[len(found)] = f"fault {why}"
    return found

"""How long it takes from `import` to the first step, with and without compiled kernels on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

START = """
import time
wall, cpu = time.perf_counter(), time.process_time()
from fq_env.engine import Engine
imported = time.perf_counter() - wall
engine = Engine(1, 1, seed=0)
engine.reset()
engine.step(__import__("numpy").array([112]))
print(imported, time.perf_counter() - wall, time.process_time() - cpu)
"""


def compile_table() -> dict[str, Any]:
    """Seconds from the start of the imports to the end of the first step, with an empty kernel cache and with a filled one."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first ever, empty cache", "again, cached", "again, cached (2)"):
            done = subprocess.run(
                (sys.executable, "-c", START),
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "FQ_CACHE_DIR": cache},
            )
            imported, wall, cpu = map(float, done.stdout.split())
            rows[name] = {"import_s": imported, "import_and_first_step_s": wall, "cpu_s": cpu}
    print("\nStart: imports, kernels, first reset and step (level 1, n = 1)")
    for name, row in rows.items():
        wall, cpu, imported = row["import_and_first_step_s"], row["cpu_s"], row["import_s"]
        print(f"  {name:<26} {wall:6.2f} s (CPU {cpu:.2f} s; of it imports {imported:.2f} s)")
    return rows

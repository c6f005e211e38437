"""Workflow files with mistakes: sound ones, each with up to three random mutations, read as `conductor run` reads them.

`python -m tests.conductor.workflow_fuzz FIRST LAST` tries the mutations of these seeds and prints one line for each, as
`tests.fq_env.level_fuzz` does: `refused` with the sentence, or `played`, which means that its run could begin.
"""

from __future__ import annotations

import functools
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import yaml

from conductor.errors import ConductorError
from conductor.pit_interface import PitInterface
from conductor.workflow import load_workflow
from tests.conductor.helpers import small_workflow, whole_workflow
from tests.fq_env.level_fuzz import mutated

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MOST = 256  # MiB that the file of one seed may take


@functools.cache
def sources() -> list[tuple[str, Any]]:
    """(suffix, data) of sound files: the examples, and every verb, join and section."""
    whole = whole_workflow()
    system, instruments = whole["system"], whole["instruments"]
    system |= {"heal": True, "fallback": True, "prewarm": True, "back_off_seconds": 1.0, "deadline_seconds": 50.0}
    system["store"] = {"hot": 200, "warm": 300, "fetch_seconds": {"warm": 1}}
    system["functions"]["ask"]["lite"] = {"pool": "api", "seconds": 0.1, "also": {"cpu": 1}}
    instruments |= {"environment": ["HOME"], "limits": {"memory": 1000, "spare": 1}}
    command = {"kind": "command", "argv": ["echo", "{input}"], "limits": {"cpu": 3}, "environment": ["X"], "secrets": []}
    instruments["functions"]["gather"] = {
        **command,
        "variants": {"standard": {"argv": ["true"]}},
        "configure": "work:configure",
    }
    examples = [yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*/workflow.yaml"))]
    joined = [{**data, "system": parts()} for data in examples if data["name"] == "code_forge"]
    return [(".yaml", data) for data in (small_workflow(), whole, whole, *examples, *joined)]


@functools.cache
def parts() -> Any:
    """The system of the code forge, which stands in a file beside the mutations, too."""
    return yaml.safe_load((EXAMPLES / "code_forge" / "system.yaml").read_text())


def begin_run(path: Path) -> None:
    """As far as `conductor run` goes before anything really runs. Raises ConductorError."""
    PitInterface(load_workflow(path).spec, "full", "run").pit.decision_due()


def attempt(seed: int, folder: Path) -> str:
    """What becomes of the mutation of this seed; raises what should never be raised."""
    suffix, raw = mutated(seed, sources())
    path = folder / f"m{seed}{suffix}"
    path.write_bytes(raw)
    try:
        begin_run(path)
    except ConductorError as error:
        told = str(error).replace("\n", "\\n")
        assert str(folder) in told or "tasks" in told or "workflow" in told, f"nothing is named: {told}"
        assert len(told) < 2000 + len(str(path)), f"too long: {told[:300]}"
        return f"refused {told.replace(str(folder), '')}"
    finally:
        path.unlink()
    return "played"


def main(first: int, last: int) -> None:
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "system.yaml").write_text(yaml.safe_dump(parts()))
        begin_run(EXAMPLES / "code_forge" / "workflow.yaml")  # compiled or loaded by now
        print("ready", flush=True)
        before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (0.0, 0)
        for seed in range(first, last):
            begin = time.process_time()
            try:
                print(seed, attempt(seed, folder), flush=True)
            except Exception as error:
                text = str(error).replace("\n", "\\n")
                print(seed, f"fault {type(error).__name__}: {text}", flush=True)
            slowest = max(slowest, (time.process_time() - begin, seed))
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            assert taken < MOST, f"seed {seed}: {taken} MiB"
        print(f"slowest: {slowest[0]:.3f} s of CPU time, seed {slowest[1]}; all together took {taken} MiB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

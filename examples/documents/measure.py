"""What the variants of `system.yaml` are worth: `python examples/documents/measure.py` from the repository's root.

Pages that the workflow does not have go through every combination of variants, by the workflow's own functions and programs.
What is left of 1 at the end (1 - word error rate) is fitted by a product of one quality per variant: an error in one step is
not made good by any later one, so `quality_flow` is 1. Seconds are those of the processor.
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documents
import numpy as np
import yaml

from conductor.instruments import CallError, Job

PAGES = {
    "doctor": documents.Page(
        ("El médico viene a las nueve de la mañana.", "Nuestros amigos viven en una casa blanca."),
        "the doctor comes at nine in the morning our friends live in a white house",
    ),
    "market": documents.Page(
        ("El mercado pequeño abre los sábados.", "El agua del río está fría por la mañana."),
        "the small market opens on saturdays the water of the river is cold in the morning",
    ),
    "station": documents.Page(
        ("La estación está cerrada los lunes.", "El pan de la semana está en la mesa."),
        "the station is closed on mondays the bread of the week is on the table",
    ),
    "sister": documents.Page(
        ("Mi hermana trabaja en la biblioteca.", "La puerta de la escuela está cerrada."),
        "my sister works in the library the door of the school is closed",
    ),
}
STEPS = ("photograph", "read", "speak", "listen")  # those that have a lite variant
VARIANTS = ("standard", "lite")
LEAST = 0.02  # of a page of which nothing arrived: a product cannot be 0


class Bench:
    """Calls functions as the conductor would, in one folder, and notes the seconds of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, defaultdict[tuple[str, str], list[float]](list)
        self._plan = yaml.safe_load(Path(__file__).with_name("workflow.yaml").read_text())["instruments"]["functions"]
        self._models = {"standard": documents.load_listener(), "lite": documents.load_skimmer()}

    def timed(self, function: str, variant: str, act: Callable[[], Any]) -> Any:
        """What `act` gives, called again after a failure up to three times; None if it fails always."""
        for _ in range(4):
            before = _cpu()
            try:
                return act()
            except CallError:
                pass
            finally:
                self.seconds[function, variant].append(_cpu() - before)
        return None

    def python(self, function: str, variant: str, page: str, inputs: dict[str, Any]) -> Any:
        """A function of `documents`."""
        job = Job(
            key=page, task=f"{function}_{page}", function=function, variant=variant, attempt=1, args={"page": page},
            inputs=inputs, seconds=60.0, folder=self.folder, base=Path(__file__).parent, model=self._models[variant],
        )  # fmt: skip
        return self.timed(function, variant, lambda: getattr(documents, function)(job))

    def command(self, function: str, variant: str, page: str, text: str) -> str:
        """A program of the workflow."""
        plan = self._plan[function]
        argv = {**plan, **plan.get("variants", {}).get(variant, {})}["argv"]
        argv = [part.replace("{args.page}", page) for part in argv]

        def act() -> str:
            done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True, cwd=self.folder)
            return done.stdout

        return str(self.timed(function, variant, act))

    def right(self, page: str) -> dict[tuple[str, ...], float]:
        """The share of words that arrive, by the variants of `STEPS`."""
        found: dict[tuple[str, ...], float] = {}
        for photograph, read in itertools.product(VARIANTS, repeat=2):
            (self.folder / f"{page}.png.hard").unlink(missing_ok=True)
            taken = self.python("photograph", photograph, page, {})
            text = self.python("read", read, page, {"taken": taken})
            english = self.command("translate", "standard", page, text or "")
            for speak in VARIANTS:
                self.command("speak", speak, page, english)
                for listen in VARIANTS:
                    heard = self.python("listen", listen, page, {})
                    result = self.python("score", "standard", page, {"heard": heard}) if heard else None
                    found[photograph, read, speak, listen] = result.quality if result is not None else 0.0
        return found


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def fitted(table: dict[tuple[str, ...], float]) -> dict[tuple[str, str], float]:
    """Factors whose products are nearest to the shares, in logarithms: of each lite variant against standard, and what
    standard is worth in all."""
    rows = np.array([[1.0, *(variant == "lite" for variant in variants)] for variants in table])
    shares = np.log(np.maximum(LEAST, list(table.values())))
    standard, *lite = np.exp(np.linalg.lstsq(rows, shares, rcond=None)[0])
    found = {(step, "lite"): float(factor) for step, factor in zip(STEPS, lite, strict=True)}
    return {**found, ("all", "standard"): float(standard)}


def main() -> None:
    """The command line."""
    documents.PAGES.update(PAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        tables = [bench.right(page) for page in PAGES]
    table = {variants: float(np.mean([t[variants] for t in tables])) for variants in tables[0]}
    for variants, share in table.items():
        lite = [f"{step} lite" for step, variant in zip(STEPS, variants, strict=True) if variant == "lite"]
        print(f"{share:.3f}  {', '.join(lite) or 'standard'}")
    for (step, variant), quality in fitted(table).items():
        print(f"quality of {step} {variant}: {quality:.3f}" + (" of standard's" if variant == "lite" else ""))
    for (step, variant), seconds in sorted(bench.seconds.items()):
        print(f"seconds of {step} {variant}: {np.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()

"""A study: `python -m experiments.study name=implicit_vs_explicit`, or `name=ablations`.

Trains the arms from several seeds, lets the kept policies play the same test instances, and writes a table, a figure and a
conclusion. It can be stopped and started again: whole trainings are used again, interrupted ones go on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from experiments import cli
from experiments.readme import STUDIES, readme_of
from experiments.study.settings import StudyConfig, checked


def study(cfg: StudyConfig) -> dict[str, Any]:
    """The command; what was written as JSON. Raises ExperimentError."""
    from experiments.study import ablations, old_model

    settings = checked(replace(cfg, readme=readme_of(cfg.readme, "study", cfg.out, STUDIES)))
    run = {"implicit_vs_explicit": old_model.study, "ablations": ablations.study}[cfg.name]
    return run(settings)


def main() -> None:
    """The command line."""
    cli.one_thread_per_process()
    cli.guarded(
        lambda: study(cli.read("study", StudyConfig, sys.argv[1:], __doc__ or "")),
        StudyConfig,
        "interrupted: what was trained stays and is used again by the same command",
    )


if __name__ == "__main__":
    main()

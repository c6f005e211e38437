"""Which levels there are: their files, found beside the package or packed into it. Light, as `import fq_env` reads it."""

from __future__ import annotations

import re
from pathlib import Path


def _folder() -> Path:
    packaged = Path(__file__).parent / "_levels"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "levels"


def _list() -> dict[int, Path]:
    found = ((re.fullmatch(r"level_(\d\d)_\w+\.yaml", p.name), p) for p in sorted(_folder().glob("level_*.yaml")))
    return {int(m.group(1)): p for m, p in found if m}


LEVELS: dict[int, Path] = _list()

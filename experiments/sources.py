"""What a training depends on beside its configuration: digests by which stored results are known to be of this code."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fq_env.level import Level

ROOT = Path(__file__).resolve().parent.parent
ENTRY = "experiments.train"
PACKAGES = ("pit", "fq_env", "conductor", "experiments")


def file_of(module: str) -> Path | None:
    """The source file of a module of the house; None for what is no module (a name within one)."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def imported(file: Path) -> set[str]:
    """Names of the house that a source file imports anywhere; a name may be a module or something within one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def sources() -> list[Path]:
    """Every source file of the house that a training imports, directly or not, by name."""
    found: dict[str, Path] = {}
    todo = {ENTRY}
    while todo:
        module = todo.pop()
        file = file_of(module)
        if file is not None and module not in found:
            found[module] = file
            todo |= imported(file) | {module.rpartition(".")[0]} - {""}
    return [found[module] for module in sorted(found)]


def rule_digest(levels: Iterable[Level]) -> str:
    """sha256 of the weights of the levels' fitted rules: they are among the players that tell how good a policy is, and the
    teacher of a recipe plays by them. A rule that does not count on its level as it is does not count here."""
    from experiments.calibrate import fitted_weights

    weights = [fitted_weights(level) for level in levels]
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def code_digest(level: Level) -> str:
    """sha256 of the sources of a training, the level and its fitted rule: what a result depends on beside configuration and
    packages."""
    digest = hashlib.sha256(level.model_dump_json().encode())
    digest.update(rule_digest([level]).encode())
    for file in sources():
        digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()

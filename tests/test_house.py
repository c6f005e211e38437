"""The rules of the house: who may import whom, what is declared, pinned and shipped."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("pit", "fq_env", "conductor", "experiments")
PIT_MAY_IMPORT = {"numpy", "numba", "llvmlite", "pydantic", "pydantic_core", "yaml", "pyarrow"}  # the last one lazily
LEARNERS = ("torch", "stable_baselines3", "sb3_contrib")


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def third_party_imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every (file, top-level module) imported under a folder that is neither of the standard library nor of the house."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names}:
                if top not in sys.stdlib_module_names and top not in PACKAGES:
                    yield file, top


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_floors(root: Path) -> None:
    """The import contracts of pyproject.toml hold."""
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pit_imports_only_what_its_floor_allows(root: Path) -> None:
    assert [(f.name, m) for f, m in third_party_imports(root / "pit") if m not in PIT_MAY_IMPORT] == []


@pytest.mark.parametrize(
    ("package", "without"),
    [
        ("pit", (*LEARNERS, "gymnasium", "hydra")),
        ("conductor", (*LEARNERS, "gymnasium", "hydra", "fq_env", "experiments")),
        ("fq_env", (*LEARNERS, "hydra", "experiments")),
    ],
)
def test_package_runs_without(root: Path, package: str, without: tuple[str, ...]) -> None:
    """Every module of the package can be imported where the given libraries cannot; the adapter to the learner is excepted."""
    run_python(
        f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
        f"import importlib, pkgutil, {package} as package\n"
        f"for module in pkgutil.walk_packages(package.__path__, '{package}.'):\n"
        "    if module.name != 'fq_env.sb3' and not module.name.endswith('__main__'): importlib.import_module(module.name)\n",
        cwd=root,
    )


def test_every_import_is_declared(root: Path) -> None:
    """What the packages import stands in pyproject.toml, as a dependency or in an extra (the tools of `dev` do not count)."""
    table = project(root)["project"]
    extras = [r for name, rs in table["optional-dependencies"].items() if name != "dev" for r in rs]
    declared = {requirement_name(r) for r in table["dependencies"] + extras}
    distributions = packages_distributions()
    missing = [
        f"{file.relative_to(root)} imports {module}"
        for package in PACKAGES
        for file, module in third_party_imports(root / package)
        if not {d.lower().replace("_", "-") for d in distributions.get(module, [module])} & declared
    ]
    assert missing == []


def test_the_game_and_the_conductor_need_no_extra(root: Path) -> None:
    """But for the adapter to the learner, and for Parquet."""
    needed = {requirement_name(r) for r in project(root)["project"]["dependencies"]}
    distributions = packages_distributions()
    more = [
        f"{file.relative_to(root)} imports {module}"
        for package in ("pit", "fq_env", "conductor")
        for file, module in third_party_imports(root / package)
        if file.name != "sb3.py" and module != "pyarrow"
        if not {d.lower().replace("_", "-") for d in distributions.get(module, [module])} & needed
    ]
    assert more == []


def test_every_dependency_is_bounded_and_pinned(root: Path) -> None:
    table = project(root)["project"]
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = [requirement_name(line) for line in lines]
    assert len(pinned) == len(set(pinned))
    extras = [r for rs in table["optional-dependencies"].values() for r in rs if requirement_name(r) != table["name"]]
    wanted = table["dependencies"] + extras
    assert [r for r in wanted if "<" not in r] == []
    assert {requirement_name(r) for r in wanted} - set(pinned) == set()


def test_the_rule_book_prints_the_tables_of_the_code(root: Path) -> None:
    from pit import layout

    assert layout.feature_table() in (root / "pit" / "README.md").read_text()


def test_no_path_of_one_machine(root: Path) -> None:
    """No tracked file names a folder that exists on one machine only."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    path = re.compile(rb"(^|[^A-Za-z0-9._-])/(work|farm|root|home|Users)/[A-Za-z.]", re.MULTILINE)
    files = [root / name for name in tracked.split("\0") if name]
    assert [str(f.relative_to(root)) for f in files if f.is_file() and path.search(f.read_bytes())] == []


def test_levels_are_found_in_the_checkout(root: Path) -> None:
    from fq_env.level import LEVELS

    assert sorted(Path(path).resolve() for path in LEVELS.values()) == sorted((root / "levels").glob("*.yaml"))


@pytest.mark.slow
def test_the_python_of_the_readme_runs(root: Path, tmp_path: Path) -> None:
    """The Python blocks of the README, one after the other in one process; the training is cut short."""
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks)
    assert "learn(100_000)" in code
    for folder in ("bundles", "examples"):  # what is run from the checkout writes beside them
        (tmp_path / folder).symlink_to(root / folder)
    done = run_python(
        code.replace("learn(100_000)", "learn(8_192)"), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    )
    total, makespan, cold_starts = (float(number) for number in done.stdout.splitlines()[0].split())
    assert 0.0 <= total <= 1.0
    assert makespan > 0.0
    assert cold_starts >= 0.0


@pytest.mark.slow
def test_the_wheel_carries_its_data(root: Path, tmp_path: Path) -> None:
    """A wheel holds the code, the type markers, all levels and all configs, and the levels are found where it was unpacked."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)],
        capture_output=True,
        timeout=300,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    for source, target in (("levels", "fq_env/_levels"), ("configs", "experiments/_configs")):
        here = sorted(f.relative_to(root / source) for f in (root / source).rglob("*.yaml"))
        there = sorted(f.relative_to(unpacked / target) for f in (unpacked / target).rglob("*.yaml"))
        assert here
        assert there == here
    for package in PACKAGES:
        assert (unpacked / package / "py.typed").is_file()
    done = run_python(
        "from experiments.cli import configs_dir\n"
        "from fq_env.level import LEVELS, load_level\n"
        "print(configs_dir())\n"
        "for number, path in LEVELS.items(): load_level(number); print(path)",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )
    configs, *levels = done.stdout.splitlines()
    assert Path(configs) == unpacked / "experiments" / "_configs"
    assert len(levels) == len(list((root / "levels").glob("*.yaml")))
    assert all(Path(path).is_relative_to(unpacked) for path in levels)

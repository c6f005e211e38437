"""Folders of another account: a sentence that names the place, whatever is asked of it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conductor.__main__ import main
from conductor.bundle import write_bundle
from conductor.journal import Journal
from conductor.orchestrator import begin
from conductor.trust import new_key
from conductor.workflow import load_workflow
from tests.conductor.helpers import MODULE, bundle_parts, small_workflow

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="fq-locked-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(*arguments: object) -> tuple[int, str]:
    """Exit status and stderr of a command that another account gives."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            sys.stdout, sys.stderr = open(os.devnull, "w"), os.fdopen(write, "w")  # noqa: SIM115 (of a process that ends)
            try:
                status = main([str(argument) for argument in arguments])
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def refused(named: Path, *arguments: object) -> None:
    status, said = as_nobody(*arguments)
    assert (status, said.count("\n")) == (2, 1) and said.startswith("conductor: ") and str(named) in said, (arguments, said)


def test_what_is_locked_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = place / "locked"
    locked.mkdir()
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    (place / "none").mkdir(0o755)  # no keys, and nobody else may put any there
    monkeypatch.setenv("FQ_CONFIG", str(locked / "config"))
    new_key("ours")
    (locked / "work.py").write_text(MODULE)
    (locked / "workflow.yaml").write_text(yaml.safe_dump(small_workflow(), sort_keys=False))
    bundle = write_bundle(locked / "bundle", **bundle_parts()).path
    run = begin(load_workflow(locked / "workflow.yaml"), locked / "runs", strategy="parallel").folder
    run.parent.chmod(0o755)
    for mode, folder in ((0o755, run), (0o700, locked)):  # the folder itself is closed, or the one around all
        locked.chmod(mode)
        for closed in (run, bundle, locked / "config"):
            closed.chmod(0o700)
        commands = (
            "show",
            "journal show",
            "journal verify",
            "journal export",
            "measure",
            "resume",
            "audit verify",
            "stop-policy",
        )
        for command in commands:
            refused(run, *command.split(), run)
        refused(run, "record", run, "--out", place / "open" / "table.parquet")
        for words in (["verify", bundle], ["sign", bundle, "--key", "ours"], ["pack", bundle, place / "open" / "zip"]):
            monkeypatch.setenv("FQ_CONFIG", str(place / "none"))
            refused(bundle, *words)
            monkeypatch.setenv("FQ_CONFIG", str(locked / "config"))
        for arguments in (["keys", "list"], ["keys", "new", "mine"], ["keys", "trust", bundle / "no.pub"]):
            refused(bundle if "trust" in arguments else locked / "config", *arguments)
        (locked / "config").chmod(0o700)
        refused(locked / "config", "verify", bundle)
        assert folder.exists()
    refused(locked / "workflow.yaml", "run", locked / "workflow.yaml", "--runs", place / "open" / "runs")


def test_a_run_that_cannot_be_written_is_not_gone_on_with(place: Path) -> None:
    """There is no `--runs` to choose another folder by; and what began in vain leaves nothing."""
    Journal(place / "run", new=True).close()
    for file in (place / "run").iterdir():
        file.chmod(0o644)
    status, said = as_nobody("resume", place / "run")
    assert status == 2 and "who goes on with a run must be able to write into its folder" in said and "--runs" not in said

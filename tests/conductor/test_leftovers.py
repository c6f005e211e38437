"""What a program in a sandbox leaves behind: nothing of it leads a later step out of the run's folder."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from conductor.instruments import CallError, leftovers
from tests.conductor.test_instruments import job
from tests.conductor.test_sandbox import CONFINED, needs_sandbox, program


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
@pytest.mark.parametrize("ends", [True, False])
def test_a_confined_program_leaves_no_way_out_of_its_folder(tmp_path: Path, level: str, ends: bool) -> None:
    """Links to places outside, also by way of another, in a folder that cannot be read, and pipes: they are gone, whether the
    program ended by itself or was ended; what a function writes then stays in the folder."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    script = (
        f"ln -s {victim} state.json; mkdir -p a/b shut; ln -s ../../.. a/b/up; ln -s a/b/up/victim by; ln -s /etc shut/l; "
        "mkfifo pipe; ln -s /nowhere none; chmod 0300 shut; chmod 0 a; touch done; "
    )
    command = program(level, "sh", "-c", script + ("" if ends else "sleep 60"))
    words = r"sh left in files/ what .*: a/b/up \(a link to \.\./\.\./\.\., removed\), by .*and 1 more$"
    for seconds in (60.0,) if ends else (2.0, 30.0):  # on a busy machine it may not have done all that before it is ended
        files = tmp_path / f"files-{seconds:g}"
        files.mkdir()
        with pytest.raises(CallError, match=words if ends else "did not end") as caught:
            command.call(job(files, seconds=seconds))
        if (files / "done").exists():
            break
    assert caught.value.kind == ("invalid" if ends else "timeout")
    (files / "state.json").write_text("theirs")
    (files / "by").write_text("theirs")
    assert victim.read_text() == "mine"
    left = {str(path.relative_to(files)) for path in files.rglob("*")}
    assert left == {"state.json", "by", "a", "a/b", "shut", "done"}


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_links_within_the_folder_and_those_of_functions_stay(tmp_path: Path, level: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "data").symlink_to(tmp_path / "data")
    script = "mkdir d; echo x > f; ln -s ../f d/l; ln -s $PWD/d/l m; ln -s later n; cat m"
    assert program(level, "sh", "-c", script).call(job(tmp_path / "files", base=tmp_path))["stdout"] == "x\n"
    assert sorted(path.name for path in (tmp_path / "files").rglob("*") if path.is_symlink()) == ["data", "l", "m", "n"]
    with pytest.raises(CallError, match=r"moved \(a link to .*/data, removed\)$"):
        program(level, "mv", "data", "moved").call(job(tmp_path / "files", base=tmp_path))


@needs_sandbox
def test_a_folder_that_lies_too_deep_to_be_looked_through_is_refused(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 200 ]; do mkdir d; cd -P d; i=$((i+1)); done; ln -s /etc l"
    with pytest.raises(CallError, match=r"\(a folder that lies too deep\)$"):
        program(CONFINED[0], "sh", "-c", script).call(job(tmp_path))


SWAPS = """
import contextlib, os
while True:
    os.rename("d", "e")
    with contextlib.suppress(FileExistsError):
        os.symlink("/etc", "e/link")
    os.symlink("../elsewhere", "d")
    with contextlib.suppress(FileNotFoundError):
        os.unlink("d")
    os.rename("e", "d")
"""


def test_no_link_is_followed_while_leftovers_are_looked_for(tmp_path: Path) -> None:
    """A folder that turns into a link to elsewhere and back all the time: what lies elsewhere is not removed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to("/etc")
    folder = tmp_path / "files"
    (folder / "d").mkdir(parents=True)
    known = leftovers.Leftover(("d", "link"), "a link")
    with subprocess.Popen([sys.executable, "-S", "-c", SWAPS], cwd=folder) as program:
        try:
            looks, removed, until = 0, False, time.monotonic() + 60
            while looks < 2000 or (not removed and time.monotonic() < until):
                looks, words = looks + 1, leftovers.remove(folder, {known, *leftovers.find(folder)})
                removed |= "d/link (a link, removed)" in words
            assert program.poll() is None and removed
        finally:
            program.kill()
    assert (tmp_path / "elsewhere" / "link").is_symlink()

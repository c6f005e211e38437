"""Programs that misbehave: whatever they do, they are stopped, nothing of them is left, and the reason is said."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.instruments import CallError
from conductor.instruments.command import LIMITS, CommandInstrument
from conductor.instruments.process import Worker
from conductor.instruments.sandbox import LEVELS, Limits, available, choose
from conductor.journal import read_journal
from conductor.model_manager import ModelManager
from conductor.orchestrator import begin
from conductor.report import report_run
from conductor.workflow import Plan, load_workflow
from tests.conductor.helpers import running, small_workflow
from tests.conductor.test_instruments import job, reply, send, wait_for

HERE = [level for level in LEVELS if LEVELS.index(level) <= LEVELS.index(available()[0])]
CONFINED = [level for level in ("landlock", "bwrap") if level in HERE]
needs_sandbox = pytest.mark.skipif(not CONFINED, reason=f"this machine has no sandbox: {available()[1]}")
CANARY = "canary-5f3a91c7e2"


def program(level: str, *argv: str, **options: Any) -> CommandInstrument:
    """A command instrument at exactly this level."""
    instrument = CommandInstrument(argv=list(argv), **options)
    instrument.level = level
    return instrument


# ------------------------------------------------------------------ the whole tree ends
@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("ends", [False, True])
def test_everything_that_a_program_has_started_ends_with_it(tmp_path: Path, mark: str, level: str, ends: bool) -> None:
    """Children, one that leaves session and group, and one whose parents are gone: whether or not the program ends itself."""
    sleep = f"sleep {mark}"
    script = f"{sleep} & setsid {sleep} & (setsid sh -c 'setsid {sleep} & exit' &) ; touch begun; "
    command = program(level, "sh", "-c", script + ("sleep 0.3" if ends else f"exec {sleep}"))
    if ends:
        assert command.call(job(tmp_path))["code"] == 0
    else:
        for seconds in (0.5, 30.0):  # on a busy machine it may not have begun before it is ended
            with pytest.raises(CallError, match=rf"sh did not end within {seconds:g} s") as caught:
                command.call(job(tmp_path, seconds=seconds))
            assert caught.value.kind == "timeout"
            if (tmp_path / "begun").exists():
                break
    assert (tmp_path / "begun").exists() and running(mark) == []


def test_a_worker_that_ends_takes_along_what_its_functions_and_programs_have_started(tmp_path: Path, mark: str) -> None:
    """Also what a Python function has put into a session of its own."""
    (tmp_path / "starts.py").write_text(
        "import subprocess\ndef f(job):\n subprocess.Popen(['sleep', job.args['mark']], start_new_session=True)\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log", threads=2)
    send(worker, "command", {"argv": ["sleep", "{args.mark}"]}, args={"mark": mark})
    send(worker, "python", {"call": "starts:f"}, args={"mark": mark})
    assert (reply(worker) or {})["error"] == "ok" and wait_for(lambda: len(running(mark)) >= 2)
    worker.end()
    assert running(mark) == []


def test_a_worker_that_is_killed_leaves_nothing(tmp_path: Path, mark: str) -> None:
    (tmp_path / "dies.py").write_text(
        "import os, subprocess\ndef f(job):\n"
        f" subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n os.kill(os.getpid(), 9)\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "dies:f"})
    assert reply(worker) is None and worker.end() == -signal.SIGKILL and running(mark) == []


# ------------------------------------------------------------------ limits
BOMB = """
import os, sys, time
for _ in range(60):
    if os.fork() == 0:
        time.sleep(float(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.parametrize("level", [level for level in HERE if level != "none"])
def test_a_program_that_forks_and_forks_is_stopped(tmp_path: Path, mark: str, level: str) -> None:
    """Sixty processes at most, whatever happens: the machine is not to suffer from a test."""
    command = program(level, "{python}", "-S", "-c", BOMB, mark, limits={"processes": 20})
    with pytest.raises(CallError, match=r"had more than 20 processes \(limits\.processes\)"):
        command.call(job(tmp_path, seconds=60.0))
    assert running(mark) == []


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        ({"memory": 200}, "x = bytearray(400 << 20)", "MemoryError"),
        ({"cpu": 1}, "while True: pass", r"took more than 1 s of CPU time \(limits\.cpu\)"),
        ({"file": 1}, "open('f', 'wb').write(bytes(2 << 20))", "File too large"),
        ({"files": 20}, "x = [open('/dev/null') for _ in range(40)]", "Too many open files"),
    ],
)
def test_a_program_that_takes_too_much_is_stopped(tmp_path: Path, limits: dict[str, int], code: str, words: str) -> None:
    command = CommandInstrument(argv=["{python}", "-S", "-c", code], limits={**limits})
    with pytest.raises(CallError, match=words):
        command.call(job(tmp_path, seconds=60.0))


def test_a_limit_that_is_not_set_is_no_reason(tmp_path: Path) -> None:
    """Only the status that a program would have that has reached it."""
    for status, limits in ((152, {}), (153, {"file": None})):
        call = {"argv": ["sh", "-c", f"echo why >&2; exit {status}"], "limits": limits}
        with pytest.raises(CallError, match=f"sh ended with status {status}: why"):
            CommandInstrument(**call).call(job(tmp_path))  # type: ignore[arg-type]
        assert CommandInstrument(**call, codes=[status]).call(job(tmp_path))["code"] == status  # type: ignore[arg-type]
    with pytest.raises(CallError, match="sh ended with status 153"):
        program("none", "sh", "-c", "exit 153").call(job(tmp_path))


def test_a_program_that_fills_the_disk_is_stopped(tmp_path: Path) -> None:
    """On a disk of 32 MiB, of which 8 have to be left, with many small files, for which it takes its time: who watches it may
    have to wait for its turn."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk can be made here: {made.stderr.strip()}")
    try:
        some = "head -c 65536 /dev/zero > f$i || exit 3; i=$((i+1)); sleep 0.05"
        script = f"head -c 23M /dev/zero > f; i=0; while :; do {some}; done"
        with pytest.raises(CallError, match=r"left less than 8 MiB on the disk of the run \(limits\.spare\)"):
            CommandInstrument(argv=["sh", "-c", script], limits={"spare": 8}).call(job(folder, seconds=60.0))
        disk = os.statvfs(folder)
        assert disk.f_bavail * disk.f_frsize > 1 << 20
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_program_that_prints_without_end_is_cut(tmp_path: Path) -> None:
    """100 MB are read and thrown away but for the first eight; that is said. As JSON they are refused."""
    printed = CommandInstrument(argv=["head", "-c", "100000000", "/dev/zero"]).call(job(tmp_path, seconds=60.0))
    assert printed["cut"] == {"stdout": 100_000_000} and len(printed["stdout"]) == 8 << 20
    with pytest.raises(CallError, match="printed 100000000 bytes; at most 8388608 are taken as JSON"):
        CommandInstrument(argv=["head", "-c", "100000000", "/dev/zero"], json=True).call(job(tmp_path, seconds=60.0))


def test_an_output_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text("def f(job):\n    return 'x' * (65 << 20)\n")
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "large:f"})
    answer = reply(worker) or {}
    worker.end()
    assert answer["error"] == "invalid" and "bytes as JSON; at most 67108864 are taken" in answer["text"]


# ------------------------------------------------------------------ what is reached
@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_a_confined_program_writes_only_where_it_may(tmp_path: Path, level: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "work.py").write_text("x")
    folder = tmp_path / "base" / "files"
    folder.mkdir()
    script = f"cat {tmp_path}/base/work.py > copy; echo y > $TMPDIR/y; cat $TMPDIR/y; echo z > {tmp_path}/base/work.py"
    done = program(level, "sh", "-c", script, codes=[]).call(job(folder, base=tmp_path / "base"))
    assert done["stdout"] == "y\n" and done["code"] != 0
    elsewhere = Path(f"/var/{CANARY}-{os.getpid()}")
    try:
        assert program(level, "touch", str(elsewhere), codes=[]).call(job(folder))["code"] != 0 and not elsewhere.exists()
    finally:
        elsewhere.unlink(missing_ok=True)
    assert (tmp_path / "base" / "work.py").read_text() == "x" == (folder / "copy").read_text()


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_a_confined_program_sees_no_home_folder(tmp_path: Path, level: str) -> None:
    secret = Path.home() / f".{CANARY}-{os.getpid()}"
    secret.write_text(CANARY)
    try:
        assert CANARY in program("limits", "cat", str(secret)).call(job(tmp_path))["stdout"]
        with pytest.raises(CallError, match="ended with status 1"):
            program(level, "cat", str(secret)).call(job(tmp_path))
    finally:
        secret.unlink()


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
@pytest.mark.parametrize("place", ["config", "base/config", "base", ".", "link"])
def test_a_confined_program_sees_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, place: str) -> None:
    """Wherever they lie: elsewhere, in the workflow's folder, right in it or around it; what lies beside them is seen."""
    (tmp_path / "base" / "files").mkdir(parents=True)
    (tmp_path / "link").symlink_to("config")
    for folder in ("config", "base", "base/config", "."):
        (tmp_path / folder / "keys").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "keys" / "prod.key").write_text(CANARY)
    (tmp_path / "base" / "work.py").write_text("seen")
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / place))
    script = f"cat {tmp_path}/{place}/keys/prod.key; cat {tmp_path}/base/work.py; cat ../work.py; echo x > f; cat f"
    told = program(level, "sh", "-c", script).call(job(tmp_path / "base" / "files", base=tmp_path / "base"))
    assert told["stdout"] == "seenseenx\n" and "prod.key" in told["stderr"]


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
@pytest.mark.parametrize("way", [f"/var/{CANARY}/wf", "/link/wf", "/hidden/link/wf", "/hidden/first/wf", "/hidden/both/wf"])
def test_a_confined_program_finds_where_links_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, way: str
) -> None:
    """The workflow's folder, by the path that was given, whether links, or what they lead to, or both are hidden."""
    hidden = tmp_path / "hidden"
    (hidden / "project" / "wf" / "files").mkdir(parents=True)
    (hidden / "project" / "secret").write_text(CANARY)
    (tmp_path / "open" / "wf" / "files").mkdir(parents=True)
    outside = Path(f"/var/{CANARY}")
    links = {tmp_path / "link": "hidden/project", hidden / "link": "../open", hidden / "first": "../link"}
    links |= {hidden / "both": str(hidden / "project"), outside: str(hidden / "project")}
    try:
        for link, target in links.items():
            try:
                link.symlink_to(target)
            except PermissionError:
                if way.startswith(str(link)):
                    pytest.skip(f"no link can be made in {link.parent}")
        monkeypatch.setenv("HOME", str(hidden))
        base = Path(way) if way.startswith("/var/") else Path(f"{tmp_path}{way}")
        (base / "work.py").write_text("seen")
        script = f"cat {{base}}/work.py ../work.py; echo x > {{folder}}/f; cat f; cat {hidden}/project/secret"
        command = program(level, "sh", "-c", script, codes=[])
        assert command.call(job(base / "files", base=base))["stdout"] == "seenseenx\n"
    finally:
        outside.unlink(missing_ok=True)


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_a_confined_program_may_be_found_by_a_link_in_a_hidden_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """As those are that people install for themselves."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").symlink_to(shutil.which("cat") or "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "files").mkdir()
    assert program(level, "tool", stdin="x").call(job(tmp_path / "files"))["stdout"] == "x"


@needs_sandbox
@pytest.mark.parametrize("variable", ["FQ_CONFIG", "XDG_CONFIG_HOME"])
def test_workers_know_where_the_keys_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Also from a path that begins in the folder where the conductor was started."""
    keys = tmp_path / ("config" if variable == "FQ_CONFIG" else "config/function-quest") / "keys"
    keys.mkdir(parents=True)
    (keys / "prod.key").write_text(CANARY)
    (tmp_path / "files").mkdir()
    monkeypatch.delenv("FQ_CONFIG")
    monkeypatch.setenv(variable, "config")
    monkeypatch.chdir(tmp_path)
    worker = Worker(tmp_path, tmp_path / "files", tmp_path / "log")
    send(worker, "command", {"argv": ["sh", "-c", f"cat {keys}/prod.key; echo end"], "sandbox": CONFINED[0]})
    answer = reply(worker) or {}
    worker.end()
    assert answer["value"]["stdout"] == "end\n"


@pytest.mark.parametrize("level", [level for level in HERE if level != "none"])
def test_a_limited_program_has_no_capabilities_whoever_runs_it(tmp_path: Path, level: str) -> None:
    """Not even those of root; nor does a program get one back that it starts."""
    script = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status"
    told = program(level, "sh", "-c", f'{script}; sh -c "{script}"').call(job(tmp_path))["stdout"]
    found = [(name, int(value, 16)) for name, _, value in (line.partition(":") for line in told.splitlines())]
    bounding = 0 if os.geteuid() == 0 else dict(found)["CapBnd"]  # who may not drop it cannot use it either
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    assert found == 2 * [(name, {"NoNewPrivs": 1, "CapBnd": bounding}.get(name, 0)) for name in names]


OTHERS = "for process in /proc/[0-9]*; do cat $process/environ; done 2> /dev/null | tr '\\0' '\\n'; echo end"


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_a_confined_program_reads_no_process_outside(tmp_path: Path, mark: str, level: str) -> None:
    """The environment of an open process of the same user; without a sandbox it is there to be read."""
    with subprocess.Popen(["sleep", mark], env={"TOKEN": CANARY, "PATH": os.environ["PATH"]}) as other:
        try:
            assert CANARY in program("none", "sh", "-c", OTHERS).call(job(tmp_path))["stdout"]
            told = program(level, "sh", "-c", OTHERS).call(job(tmp_path))["stdout"]
            assert told.endswith("end\n") and CANARY not in told
        finally:
            other.kill()


CONDUCTOR = "import sys; from conductor.__main__ import main; print(main(['show', '/nowhere']), flush=True); sys.stdin.read()"


def test_a_limited_program_does_not_read_the_environment_of_the_conductor(tmp_path: Path, root: Path) -> None:
    """Where no sandbox can be had, the command line's process closes itself to its own user."""
    environment = {"TOKEN": CANARY, "PATH": os.environ["PATH"]}
    start = [sys.executable, "-c", CONDUCTOR]
    pipe = subprocess.PIPE
    with subprocess.Popen(start, env=environment, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "2\n"
        seen = [program(level, "sh", "-c", OTHERS).call(job(tmp_path))["stdout"] for level in ("none", "limits")]
        other.communicate("")
    assert "end\n" in seen[1] and CANARY not in seen[1]
    assert os.geteuid() != 0 or CANARY in seen[0]


CONNECT = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "0" else None
socket.create_connection(("127.0.0.1", int(sys.argv[1]) or server.getsockname()[1]), timeout=20)
"""


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_a_confined_program_opens_no_connection(tmp_path: Path, level: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = ("{python}", "-S", "-c", CONNECT, str(server.getsockname()[1]))
        with pytest.raises(CallError, match="ended with status 1"):
            program(level, *argv).call(job(tmp_path))
        assert program(level, *argv, network=True).call(job(tmp_path))["code"] == 0


REACHES = """
import socket, sys
kind, address = sys.argv[1:]
if kind == "unix":
    socket.socket(socket.AF_UNIX).connect(address)
else:
    protocol = 262 if kind == "mptcp" else 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM, protocol) as own:
        own.connect(("127.0.0.1", int(address)))
        own.send(b"x")
"""


@pytest.mark.skipif("landlock" not in HERE, reason=f"this machine has no Landlock: {available()[1]}")
@pytest.mark.parametrize("kind", ["tcp", "udp", "mptcp", "unix"])
def test_landlock_is_helped_to_forbid_every_socket(tmp_path: Path, kind: str) -> None:
    """Also those that Landlock knows nothing of; a service of the machine behind a path might do everything for its user."""
    (tmp_path / "files").mkdir()
    path = str(tmp_path / "socket")
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as server:
        server.bind(path if kind == "unix" else ("127.0.0.1", 0))
        if kind != "udp":
            server.listen()
        argv = ("{python}", "-S", "-c", REACHES, kind, path if kind == "unix" else str(server.getsockname()[1]))
        with pytest.raises(CallError, match="PermissionError"):
            program("landlock", *argv).call(job(tmp_path / "files"))
        if kind != "mptcp" or Path("/proc/sys/net/mptcp/enabled").exists():
            assert program("landlock", *argv, network=True).call(job(tmp_path / "files"))["code"] == 0


CALLS = """
import ctypes, errno, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def told(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0
handle = os.open(sys.argv[1], os.O_RDONLY)
found = [
    told(os.chmod, sys.argv[1], 0o4755), told(os.fchmod, handle, 0o6755), told(os.chmod, "own", 0o4700),
    told(os.setxattr, sys.argv[1], "user.a", b"b"), told(os.removexattr, handle, "user.a"),
    told(os.chmod, "own", 0o2750), told(os.truncate, sys.argv[1], 0), told(socket.socketpair),
    told(os.open, "a", os.O_CREAT | os.O_WRONLY, 0o4755), told(os.mknod, "b", 0o104755),
    told(os.open, ".", os.O_TMPFILE | os.O_WRONLY, 0o4755), told(os.open, "c", os.O_CREAT | os.O_WRONLY, 0o755),
    told(os.open, "own", os.O_RDONLY, 0o4755), told(os.mkdir, "d", 0o4755),
    told(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (9, 9)),
    told(resource.prlimit, 0, resource.RLIMIT_CORE, (0, 0)),
]
libc.creat(b"e", 0o4755)
found.append(ctypes.get_errno())
for call, *arguments in ((425, 1, 0), (437, -100, b"own", ctypes.create_string_buffer(24), ctypes.c_size_t(24))):
    ctypes.set_errno(0)
    libc.syscall(call, *arguments)
    found.append(ctypes.get_errno())
print([errno.errorcode.get(code, code) for code in found])
"""


@pytest.mark.skipif("landlock" not in HERE, reason=f"this machine has no Landlock: {available()[1]}")
def test_landlock_is_helped_with_what_is_no_reading_or_writing(tmp_path: Path) -> None:
    """Nothing is made setuid, not even as it comes to be, and attributes and others' limits stay as they are; other modes may
    be changed."""
    (tmp_path / "outside").write_text("x")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "own").touch()
    command = program("landlock", "{python}", "-S", "-c", CALLS, str(tmp_path / "outside"))
    told = command.call(job(tmp_path / "files", base=tmp_path))["stdout"]
    refused = ["EPERM"] * 3 + ["ENOTSUP"] * 2
    makes = ["EPERM"] * 3 + [0] * 3
    assert told == f"{[*refused, 0, 'EACCES', 0, *makes, 'EPERM', 0, 'EPERM', 'ENOSYS', 'ENOSYS']}\n"
    assert not [path for path in (tmp_path / "files").iterdir() if path.stat().st_mode & 0o4000]
    assert (tmp_path / "files" / "own").stat().st_mode & 0o7777 == 0o2750
    assert (tmp_path / "outside").read_text() == "x" and not (tmp_path / "outside").stat().st_mode & 0o6000


POOL = """
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        print(pool.map(abs, [-1, 2]))
"""
BUILDS = """
set -e
echo 'int main(void) { return 7; }' > a.c
cc -o a a.c
./a || echo $?
mkdir -p d/e; cp -a a d/e/; tar -cf d.tar d; rm -r d; tar -xf d.tar; d/e/a || echo $?
"""


@needs_sandbox
@pytest.mark.parametrize("level", CONFINED)
def test_ordinary_programs_run_in_a_sandbox(tmp_path: Path, level: str) -> None:
    """Processes that share memory; a compiler and an archiver, which set modes and times."""
    (tmp_path / "pool.py").write_text(POOL)
    pool = program(level, "{python}", "pool.py").call(job(tmp_path, seconds=60.0))
    assert pool["stdout"] == "[1, 2]\n"
    if shutil.which("cc") and shutil.which("tar"):
        assert program(level, "sh", "-c", BUILDS).call(job(tmp_path, seconds=60.0))["stdout"] == "7\n7\n"


def test_a_function_may_require_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor.instruments.sandbox.available", lambda: ("limits", "bwrap is not installed"))
    assert choose(None) == choose("limits") == "limits" and choose("none") == "none"
    with pytest.raises(
        ValueError, match="sandbox bwrap is not to be had on this machine, only limits: bwrap is not installed"
    ):
        CommandInstrument(argv=["true"], sandbox="bwrap")


BWRAP = """#!/bin/sh
if [ -e {busy} ]; then echo Resource temporarily unavailable >&2; exit 1; fi
exec {bwrap} "$@"
"""


@pytest.mark.skipif("bwrap" not in HERE, reason=f"this machine has no bwrap that works: {available()[1]}")
def test_no_call_runs_in_a_lower_sandbox_than_the_one_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps bwrap from working may come and pass: of two calls the second has a worker that has not yet looked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bwrap").write_text(BWRAP.format(busy=tmp_path / "busy", bwrap=shutil.which("bwrap")))
    (tmp_path / "bin" / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    argv = ["sh", "-c", "touch begun; exec sleep {args.seconds}"]
    plan = Plan.model_validate({"functions": {"f": {"kind": "command", "argv": argv, "seconds": 60}}})
    manager = ModelManager(plan, {}, tmp_path, tmp_path, Limits())
    try:
        assert manager.check({"f": ["standard"]}, [], "here") == {"f (standard)": "bwrap"}
        fields = {"key": "k", "task": "t", "function": "f", "variant": "standard", "attempt": 1, "inputs": {}, "seconds": 60}
        manager.start(1, -1, {**fields, "args": {"seconds": "60"}})
        assert wait_for((tmp_path / "files" / "begun").exists)
        (tmp_path / "busy").touch()
        manager.start(2, -1, {**fields, "args": {"seconds": "0"}})
        (told,) = manager.poll(60.0)
        assert (told.subject, told.error) == (2, "error") and "the run began with bwrap" in told.text
        (tmp_path / "busy").unlink()
        manager.start(3, -1, {**fields, "args": {"seconds": "0"}})
        (told,) = manager.poll(60.0)
        assert (told.subject, told.error, told.text) == (3, "ok", "")
    finally:
        manager.close()


# ------------------------------------------------------------------ secrets, and whole runs
def test_a_program_sees_only_the_environment_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", CANARY)
    seen = CommandInstrument(argv=["env"]).call(job(tmp_path, environment={"WANTED": "yes"}))["stdout"]
    assert "WANTED=yes" in seen and CANARY not in seen


LEAKS = f"""
import os
def unseen(job):
    return sorted(name for name, value in os.environ.items() if "{CANARY}" in value)
def leak(job):
    print("printed", job.environment["TOKEN"])
    if job.attempt == 1:
        raise ValueError(job.environment["TOKEN"])
    return {{"token": job.environment["TOKEN"], "plain": job.environment["PLAIN"], "job": repr(job)}}
"""


def test_a_secret_is_nowhere(
    write_workflow: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not in a worker's environment, and where a function gives it away, its name stands for it: journal, outputs, logs."""

    def plan(**more: Any) -> dict[str, Any]:
        return {"secrets": ["TOKEN"], "environment": ["PLAIN"], "seconds": 60, **more}

    functions = {
        "fa": {"kind": "python", "call": "leaks:unseen"},
        "fb": plan(kind="python", call="leaks:leak"),
        "plain": plan(kind="command", argv=["sh", "-c", "echo $TOKEN $PLAIN; echo $TOKEN >&2"]),
    }
    path = write_workflow(small_workflow(**functions))
    (tmp_path / "leaks.py").write_text(LEAKS)
    monkeypatch.setenv("PLAIN", "plain-value")
    with pytest.raises(ConductorError, match=r"functions\.fb\.secrets: TOKEN is not set in the environment"):
        load_workflow(path)
    monkeypatch.setenv("TOKEN", f"{CANARY}\"'")
    folder = begin(load_workflow(path), tmp_path / "runs", strategy="parallel").folder
    texts = {file: file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file()}
    assert [file for file, text in texts.items() if CANARY in text] == []
    assert "[]\n" in texts.values() and '["TOKEN"]\n' not in texts.values()  # what `unseen` has seen
    whole = "".join(texts.values())
    assert "printed [TOKEN]" in whole and '"token":"[TOKEN]"' in whole and "ValueError: [TOKEN]" in whole
    assert '"plain":"plain-value"' in whole and "[TOKEN] plain-value" in whole
    run = next(read_journal(folder))
    assert set(run.data["sandbox"]) == {"fa (standard)", "fb (standard)", "plain (standard)"}
    assert run.data["sandbox"]["fa (standard)"] == "none" and run.data["sandbox"]["plain (standard)"] == available()[0]


def test_a_variant_has_an_implementation_of_its_own(write_workflow: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    plan = {"kind": "command", "argv": ["echo", "{variant}"], "variants": {"lite": {"argv": ["echo", "small"]}}}
    workflow = small_workflow(plain=plan)
    workflow["system"]["verbs"] = ["standard", "lite"]
    workflow["system"]["functions"]["plain"]["lite"] = {"pool": "cpu", "seconds": 0.1}
    loaded = load_workflow(write_workflow(workflow)).plan.functions["plain"]
    assert loaded.instrument("standard") == {"kind": "command", "options": {"argv": ["echo", "{variant}"]}}
    assert loaded.instrument("lite") == {"kind": "command", "options": {"argv": ["echo", "small"]}}
    report = report_run(begin(load_workflow(write_workflow(workflow)), tmp_path / "runs", strategy="parallel").folder)
    assert report.status == "solved"
    assert set(next(read_journal(report.folder)).data["sandbox"]) >= {"plain (standard)", "plain (lite)"}


def test_a_worker_is_limited(write_workflow: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    """A function that takes too much memory fails; its worker, and what it will do for others, lives on."""
    workflow = small_workflow(fa={"kind": "python", "call": "greedy:f"})
    workflow["instruments"]["limits"] = {"memory": 2000}
    workflow["system"]["max_attempts"] = 2
    path = write_workflow(workflow)
    (tmp_path / "greedy.py").write_text("def f(job):\n    return len(bytearray(3000 << 20)) if job.attempt == 1 else 1\n")
    report = report_run(begin(load_workflow(path), tmp_path / "runs", strategy="parallel").folder)
    assert report.status == "solved" and report.events["reload"] == 0
    assert {c.text for c in report.calls if c.result != "ok"} == {"MemoryError: "}
    workflow["instruments"]["limits"] = {"cpu": 5}
    with pytest.raises(ConductorError, match=r"instruments\.limits\.cpu would end every worker some day"):
        load_workflow(write_workflow(workflow))


def test_limits_are_there_without_being_asked_for() -> None:
    assert CommandInstrument(argv=["true"])._limits == LIMITS

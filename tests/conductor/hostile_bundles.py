"""Bundles with mistakes and malice: sound ones, each with one to three random mutations, are opened and made to decide.

`python -m tests.conductor.hostile_bundles FIRST LAST` tries the mutations of these seeds and prints one line for each:
`refused` with the sentence, or `loaded`. A signed bundle must be refused. Anything but a ConductorError is a fault, as are
code that runs, a file that is written, a process, a module that is imported, and 256 MiB more of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from conductor import trust
from conductor.archive import pack
from conductor.bundle import Bundle, load_bundle, write_bundle
from conductor.errors import ConductorError
from conductor.files import canonical
from conductor.guard import RangeGuard
from conductor.manifest import ranges_of
from conductor.pit_interface import Rule
from conductor.trust import ANYONE, Trust
from pit import rules
from pit.handle import Event, Pit
from pit.layout import ARRIVE
from pit.spec import WorkflowSpec
from tests.conductor.helpers import NETWORK, SLOTS, bundle_parts, random_observations, reseal, small_workflow
from tests.fq_env.level_fuzz import mutate, places

ROOM = 256 * 2**20  # bytes more than a good bundle needs
FORBIDDEN = (
    "exec", "compile", "import", "marshal.", "pickle.", "ctypes.", "code.", "subprocess.", "socket.", "shutil.",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.mkdir", "os.remove", "os.rename", "os.symlink",
    "os.link", "os.chmod",
)  # fmt: skip
TENSORS = ("policy.safetensors", "golden.safetensors")
NUMBERS = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, 1.0)
_watched = False
_seen: list[str] = []


def _hook(event: str, arguments: Any) -> None:
    if not _watched:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _seen.append(f"open {path} {mode} {flags}")
    elif event.startswith(FORBIDDEN):
        _seen.append(f"{event} {arguments!r}"[:300])


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What is done inside that nothing that is read may ever cause (`FORBIDDEN`, and files opened for writing)."""
    global _watched
    _seen.clear()
    _watched = True
    try:
        yield _seen
    finally:
        _watched = False


class Sound:
    """Bundles to begin with, in a folder of their own: `folders[k]` as files, and a trusted key that signed them."""

    def __init__(self, folder: Path) -> None:
        os.environ["FQ_CONFIG"] = str(folder / "config")
        trust.trust_key(trust.new_key("ours").public)
        self.trust: Trust = trust.read_trust()
        weights = np.zeros(rules.N_WEIGHTS)
        weights[:: rules.N_WEIGHTS // 40] = np.random.default_rng(0).normal(size=len(weights[:: rules.N_WEIGHTS // 40]))
        table = rules.table_of(weights)
        several = (
            (NETWORK, {"name": "calibrated", "params": {"weights": table}}),
            (SLOTS, {"name": "critical_path_warm_wait", "params": {"theta": 0.5, "variant": 2}}),
        )
        seen = random_observations(100)
        seen[:, 20:480] = 0.0  # a short manifest is changed in more telling places, and faster
        ranges = ranges_of(seen)
        self.folders = [
            write_bundle(folder / str(k), **bundle_parts(k, network), rule=rule, ranges=ranges, key="ours").path
            for k, (network, rule) in enumerate(several)
        ]
        self.pit = Pit(WorkflowSpec.model_validate(small_workflow()))
        self.pit.apply(Event(ARRIVE, 0))
        self.observations = random_observations(20, 5)

    def decide(self, bundle: Bundle) -> None:
        """Use everything that a bundle brings. Raises AssertionError for an answer that is none."""
        mask = self.pit.mask()
        for observation in (*self.observations, self.pit.observe()):
            with np.errstate(all="ignore"):
                action = bundle.policy.act(observation, mask)
            assert action == -1 or mask[action], f"action {action} is not legal"
        action = Rule(bundle.manifest.rule.name, bundle.manifest.rule.params).choose(self.pit)
        assert 0 <= action < 128, f"the rule takes {action}"
        if bundle.manifest.ranges is not None:
            assert 0.0 <= RangeGuard(bundle.manifest.ranges).look(self.observations[3]) <= 1.0


# ------------------------------------------------------------------ mutations
def _bytes(rng: random.Random, content: bytes) -> bytes:
    """A file changed without understanding it."""
    raw = bytearray(content)
    kind = rng.choice(("flip", "flip", "number", "cut", "more", "hole", "repeat"))
    at = rng.randrange(len(raw) + 1)
    if kind == "cut":
        del raw[at:]
    elif kind == "more":
        raw[at:at] = rng.randbytes(rng.choice((1, 8, 5000)))
    elif kind == "hole":
        del raw[at : at + rng.choice((1, 8, 500))]
    elif kind == "repeat":
        raw[at:at] = raw[at : at + 200]
    elif kind == "number" and len(raw) >= 8:
        at = rng.choice((0, rng.randrange(len(raw) - 7)))
        raw[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32, 2**63, 2**64 - 1)))
    elif raw:
        for _ in range(rng.choice((1, 1, 8))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _table(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose table says something else."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        if places(table):
            mutate(rng, table)
    try:
        text = json.dumps(table).encode("utf-8", "surrogatepass")
    except (RecursionError, TypeError):
        text = b'{"a":' * 5000
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _tensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file of other tensors."""
    arrays = {name: array.copy() for name, array in load(content).items()}
    first, second = rng.choice(list(arrays)), rng.choice(list(arrays))
    array = arrays[first]
    kind = rng.choice(("value", "value", "swap", "swap rows", "dtype", "shape", "drop", "add", "all"))
    if kind == "value" and array.size:
        number = rng.choice(NUMBERS)
        array.flat[rng.randrange(array.size)] = number if array.dtype.kind == "f" else rng.choice((0, 1, 127, 255))
    elif kind == "all" and array.dtype.kind == "f":
        array[...] = rng.choice(NUMBERS)
    elif kind == "swap":
        arrays[first], arrays[second] = arrays[second], arrays[first]
    elif kind == "swap rows" and array.ndim and len(array) > 1:
        array[[0, -1]] = array[[-1, 0]]
    elif kind == "dtype":
        arrays[first] = array.astype(rng.choice((np.float16, np.float64, np.int8, np.int64, np.uint8, bool)))
    elif kind == "shape":
        arrays[first] = rng.choice((array.reshape(-1), array[None], array[:0], np.resize(array, (70,) + array.shape[1:])))
    elif kind == "drop":
        del arrays[first]
    else:
        arrays[rng.choice(("more", "", "policy.0.weight\0", "x" * 5000, "../up"))] = np.zeros(3, np.float32)
    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


def _manifest(rng: random.Random, content: bytes) -> bytes:
    """A manifest that says something else."""
    data = json.loads(content)
    if rng.random() < 0.3:
        part = rng.choice(("rule", "ranges", "network", "files", "tables"))
        inner = {part: data[part]}
        mutate(rng, inner)
        data.update(inner)
    else:
        mutate(rng, data)
    try:
        return canonical(data)
    except ValueError:
        return (json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n").encode("utf-8", "surrogatepass")
    except (RecursionError, TypeError):
        return b"[" * rng.choice((100, 100_000))


def mutated(rng: random.Random, sound: Sound, target: Path) -> Path:
    """A mutated copy of a sound bundle in `target`, signature and all; most often its sizes and hashes fit again."""
    source = rng.choice(sound.folders)
    shutil.copytree(source, target)
    for _ in range(rng.choice((1, 1, 2, 3))):
        there = sorted(file.name for file in target.iterdir())
        name = rng.choice([*(name for name in (*TENSORS, "manifest.json") for _ in range(3)), *there])
        if rng.random() < 0.05:
            (target / name).unlink(missing_ok=True)
            continue
        content = (target / name).read_bytes() if (target / name).exists() else b"{}"
        ways = [_bytes]
        if content == (source / name).read_bytes():  # it can still be understood
            ways += [_table, _tensors, _tensors] if name in TENSORS else [_manifest] * 3 if name == "manifest.json" else []
        (target / name).write_bytes(rng.choice(ways)(rng, content))
    if rng.random() < 0.7:
        with contextlib.suppress(Exception):  # what is no manifest any more cannot be made to fit
            reseal(target)
    return target


def attempt(seed: int, sound: Sound, folder: Path) -> str:
    """What becomes of the mutation of this seed; raises what should never be raised."""
    rng = random.Random(seed)
    place, signed = mutated(rng, sound, folder / "target"), rng.random() < 0.4
    if not signed:
        (place / trust.SIGNATURE).unlink(missing_ok=True)
    if rng.random() < 0.3:
        content = pack({file.name: file.read_bytes() for file in place.iterdir()})
        while rng.random() < 0.5:
            content = _bytes(rng, content)
        place = folder / "target.zip"
        place.write_bytes(content)
    try:
        return judged(place, sound, signed)
    finally:
        shutil.rmtree(folder / "target")
        (folder / "target.zip").unlink(missing_ok=True)


def judged(place: Path, sound: Sound, signed: bool) -> str:
    """`refused` with the sentence, or `loaded`, after what was loaded has decided; raises what should never be raised."""
    with watched() as seen:
        try:
            bundle = load_bundle(place, sound.trust if signed else ANYONE)
            sound.decide(bundle)
        except ConductorError as error:
            assert str(place) in str(error), f"no file is named: {error}"
            assert len(str(error)) < 3000, f"too long: {str(error)[:300]}"
            return f"refused {error}".replace("\n", "\\n").replace(str(place), "")
        finally:
            assert not seen, f"this was done: {seen[0]}"
    if signed:  # a zip may differ in a time or a version number, which say nothing of its files
        whole = [{file.name: file.read_bytes() for file in source.iterdir()} for source in sound.folders]
        assert bundle.contents in whole, "another bundle passed for the signed one"
    return "loaded"


def prepared(folder: Path) -> Sound:
    """Sound bundles, with everything imported and compiled, and `ROOM` left to this process."""
    sound = Sound(folder)
    sys.addaudithook(_hook)
    for seed in range(20):
        with contextlib.suppress(AssertionError):
            attempt(seed, sound, folder)
    for place in sound.folders:
        sound.decide(load_bundle(place))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    print("ready", flush=True)
    return sound


def memory(name: str) -> float:
    """MiB of memory that this process has (`VmRSS`), or has had at most since `forget` (`VmHWM`)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def forget() -> None:
    """Begin anew with the most memory that this process has had."""
    Path("/proc/self/clear_refs").write_text("5")


def tried(name: object, act: Callable[[], str]) -> float:
    """Prints the outcome of an attempt; the seconds of CPU that it took."""
    begin = time.process_time()
    try:
        outcome = act()
    except Exception as error:
        outcome = f"fault {type(error).__name__}: {error}".replace("\n", "\\n")
    seconds = time.process_time() - begin
    print(name, outcome.encode("ascii", "backslashreplace").decode(), flush=True)
    return seconds


def main(first: int, last: int) -> None:
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as name:
        folder = Path(name)
        sound = prepared(folder)
        forget()
        before, slowest = memory("VmRSS"), 0.0
        for seed in range(first, last):
            slowest = max(slowest, tried(seed, partial(attempt, seed, sound, folder)))
        print(f"measured slowest {slowest:.3f} s of CPU, at most {memory('VmHWM') - before:.0f} MiB more memory", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

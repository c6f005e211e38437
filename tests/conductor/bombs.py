"""Bundles made to be slow or large: `python -m tests.conductor.bombs [NAME...]` opens them as `hostile_bundles` does.

A line for each: its name, `refused` with the sentence or `loaded`. What takes the most of what is allowed is loaded.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from conductor.archive import pack
from conductor.bundle import MAX_GOLDEN, write_bundle
from conductor.policy import MlpSpec, NetworkSpec, SlotsSpec, make_policy, tensor_shapes
from tests.conductor.helpers import NETWORK, bundle_parts, random_observations, reseal
from tests.conductor.hostile_bundles import forget, judged, memory, prepared, tried


def large(folder: Path, network: NetworkSpec, scale: float) -> None:
    """A bundle of this network with as many golden vectors as are allowed; `scale` of its weights."""
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(network)
    tensors = {name: (rng.normal(0, 1, shape) * scale).astype(np.float32) for name, shape in shapes.items()}
    tensors[list(shapes)[-1]][:] = np.arange(len(tensors[list(shapes)[-1]]))
    obs, mask = random_observations(MAX_GOLDEN + 17)[-MAX_GOLDEN:], np.ones((MAX_GOLDEN, 128), bool)
    policy = make_policy(network, tensors)
    golden = {"obs": obs, "mask": mask.astype(np.uint8), "action": np.array([policy.act(o, m) for o, m in zip(obs, mask)])}
    folder.joinpath("policy.safetensors").write_bytes(save(tensors))
    folder.joinpath("golden.safetensors").write_bytes(save(golden))
    reseal(folder, network=network.model_dump())


def manifest(folder: Path, text: str) -> None:
    folder.joinpath("manifest.json").write_text(text)


def header(folder: Path, table: Any, behind: bytes = b"") -> None:
    """A policy file with this table."""
    text = json.dumps(table).encode() if not isinstance(table, bytes) else table
    folder.joinpath("policy.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + behind)
    reseal(folder)


def sparse(path: Path) -> None:
    """A file that says it has 1 TiB."""
    with open(path, "wb") as file:
        file.truncate(2**40)


def deflated(folder: Path) -> Path:
    """A zip of 10 kB that holds 10 MB of zeros."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for source in folder.iterdir():
            file.writestr(source.name, bytes(10**7))
    return target


def overlapping(folder: Path) -> Path:
    """A zip whose entries all have the same bytes, so that it holds many times its size."""
    target = folder.with_suffix(".zip")
    content = pack({"card.md": bytes(2**20)})
    begin = struct.unpack_from("<I", content, len(content) - 6)[0]
    entry = content[begin:-22]
    end = bytearray(content[-22:])
    struct.pack_into("<HHI", end, 8, 6, 6, 6 * len(entry))
    target.write_bytes(content[:begin] + 6 * entry + end)
    return target


def many_entries(folder: Path) -> Path:
    """A zip of 60,000 entries."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as file:
        for i in range(60_000):
            file.writestr(f"{i:05}", b"")
    return target


def crowd(folder: Path) -> None:
    for i in range(20_000):
        (folder / f"a{i:05}").touch()


def number(value: str) -> Callable[[Path], None]:
    """A manifest whose first seed is this number."""
    return lambda folder: manifest(folder, (folder / "manifest.json").read_text().replace(str(2**63), value))


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
BOMBS: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "wide": (lambda f: large(f, MlpSpec(kind="mlp", layers=[4096, 440], activation="tanh"), 0.1), "loaded"),
    "denormal": (lambda f: large(f, MlpSpec(kind="mlp", layers=[4096, 440], activation="relu"), 1e-39), "loaded"),
    "slots": (lambda f: large(f, SlotsSpec(kind="slots", widths=[1300, 70], activation="tanh"), 0.1), "loaded"),
    "denormal-slots": (lambda f: large(f, SlotsSpec(kind="slots", widths=[1300, 70], activation="relu"), 1e-39), "loaded"),
    "too-wide": (
        lambda f: large(f, MlpSpec(kind="mlp", layers=[4096, 4096], activation="relu"), 0.1),
        "is larger than 16777216",
    ),
    "deep": (lambda f: manifest(f, "[" * 10**6), "maximum recursion depth"),
    "long": (lambda f: manifest(f, " " * 2**21), "is larger than 1048576 bytes"),
    "digits": (number("9" * 10**6), "Exceeds the limit"),
    "float": (number("1e400"), "is not canonical JSON"),
    "seeds": (lambda f: reseal(f, seeds=[0] * 500_000), "holds more than 50000 values"),
    "unknown-keys": (lambda f: reseal(f, **{f"k{i:06}": 0 for i in range(49_000)}), "Extra inputs are not permitted"),
    "evaluation": (lambda f: reseal(f, evaluation=[{}] * 49_000), "loaded"),
    "not-strings": (lambda f: reseal(f, levels=[0] * 49_000), "levels.0: Input should be a valid string"),
    "not-scalars": (
        lambda f: reseal(f, evaluation=[{"a": []}] * 49_000),
        "evaluation: Value error, a of row 0 must be",
    ),
    "not-weights": (lambda f: reseal(f, rule=weights()), "rule.params.weights"),
    "files": (lambda f: reseal_files(f), "is a file too many"),
    "tensors": (lambda f: header(f, {f"t{i}": EMPTY for i in range(900)}), "holds 900 tensors; at most 256"),
    "table": (lambda f: header(f, {f"t{i}": EMPTY for i in range(200_000)}), "a table of at most 65536 bytes"),
    "nested-table": (lambda f: header(f, b'{"a":' * 12_000), "is not a safetensors file"),
    "shape": (lambda f: header(f, {"a": {**EMPTY, "shape": [0, 2**62, 2**62]}}), "policy.safetensors"),
    "sparse": (lambda f: sparse(f / "card.md"), "is larger than 16777216 bytes"),
    "crowd": (crowd, "holds more than 6 files"),
    "zero": (lambda f: ((f / "card.md").unlink(), (f / "card.md").symlink_to("/dev/zero"), None)[2], "is not a plain file"),
    "pipe": (lambda f: ((f / "card.md").unlink(), os.mkfifo(f / "card.md"), None)[2], "is not a plain file"),
    "deflated": (deflated, "is compressed or encrypted"),
    "overlapping": (overlapping, "stands there twice"),
    "entries": (many_entries, "holds 60000 files"),
    "sparse-zip": (lambda f: (sparse(f.with_suffix(".zip")), f.with_suffix(".zip"))[1], "is larger than 16777216 bytes"),
}


def weights() -> dict[str, Any]:
    """A rule whose weights are no numbers."""
    return {"name": "calibrated", "params": {"weights": {"standard": {f"w{i}": [] for i in range(49_000)}}}}


def reseal_files(folder: Path) -> None:
    """A manifest that names thousands of files."""
    reseal(folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["files"] |= {f"x{i:05}": {"sha256": "0" * 64, "size": 1} for i in range(9_000)}
    (folder / "manifest.json").write_text(json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n")


def main(names: list[str]) -> None:
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as name:
        folder = Path(name)
        places = {}
        for bomb in names or BOMBS:
            target = write_bundle(folder / "bombs" / bomb, **bundle_parts(0, NETWORK)).path
            places[bomb] = BOMBS[bomb][0](target) or target
        sound = prepared(folder)
        for bomb, place in places.items():
            forget()
            before = memory("VmRSS")
            seconds = tried(bomb, partial(judged, place, sound, signed=False))
            print(f"measured {bomb}: {seconds:.3f} s of CPU, {memory('VmHWM') - before:.0f} MiB more memory", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

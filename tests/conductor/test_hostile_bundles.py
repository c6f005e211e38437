"""Bundles from people who mean harm: refused in one sentence, or a policy that passes its golden vectors; no code is ever run.

200 mutations by default, as many as `FQ_MUTATIONS` says otherwise.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from conductor.bundle import Bundle, load_bundle, pack_bundle, write_bundle
from conductor.errors import ConductorError
from conductor.trust import ANYONE, new_key, read_trust, trust_key
from tests import mutations
from tests.conductor.bombs import BOMBS
from tests.conductor.helpers import bundle_parts, reseal

MUTATIONS = mutations.asked(200)
HEAVY = ("wide", "denormal", "slots", "denormal-slots", "too-wide", "entries", "crowd")


def test_mutated_bundles_are_refused_or_decide(root: Path) -> None:
    outcomes = mutations.outcomes(root, "tests.conductor.hostile_bundles", MUTATIONS)
    faults = {seed: outcome for seed, outcome in outcomes.items() if outcome.startswith("fault")}
    assert not faults, faults
    loaded = sum(outcome == "loaded" for outcome in outcomes.values())
    assert 0.02 < loaded / MUTATIONS < 0.6, "the mutations should leave some bundles sound, and break most"


@pytest.mark.parametrize(
    "names", [[name for name in BOMBS if name not in HEAVY], pytest.param(list(HEAVY), marks=pytest.mark.slow)]
)
def test_bombs(root: Path, names: list[str]) -> None:
    """Within 256 MiB more than a good bundle needs; the seconds are printed, not asserted."""
    command = [sys.executable, "-m", "tests.conductor.bombs", *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    for name in names:
        assert BOMBS[name][1] in outcomes[name], (name, outcomes[name])
        assert not outcomes[name].startswith("fault")


# ------------------------------------------------------------------ a planted pickle
class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self._marker, "w")


def planted(kind: str, folder: Path, payload: bytes) -> Path:
    """A bundle, or what pretends to be one, with a pickle somewhere."""
    if kind == "learner":  # as a learner's library saves itself, with an object in its JSON
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("data", json.dumps({"policy_class": {":serialized:": base64.b64encode(payload).decode()}}))
            file.writestr("policy.pth", payload)
        folder.with_suffix(".zip").write_bytes(buffer.getvalue())
        return folder.with_suffix(".zip")
    if kind == "metadata":
        tensors = load((folder / "policy.safetensors").read_bytes())
        (folder / "policy.safetensors").write_bytes(save(tensors, {"pickle": base64.b64encode(payload).decode()}))
    elif kind == "extra":
        (folder / "policy.pkl").write_bytes(payload)
    elif kind == "system":
        (folder / "system.yaml").write_text("!!python/object/apply:os.system ['touch marker']\n")
    else:
        (folder / kind).write_bytes(payload)
    if kind != "manifest.json":
        reseal(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("learner", "holds 'data'; a bundle holds"),
        ("extra", "policy.pkl: is a file too many"),
        ("policy.safetensors", "is not a safetensors file"),
        ("golden.safetensors", "is not a safetensors file"),
        ("manifest.json", "is not canonical JSON"),
        ("card.md", "is not UTF-8 text"),
        ("metadata", ""),
        ("system", ""),
    ],
)
def test_a_planted_pickle_is_never_run(bundle: Bundle, tmp_path: Path, kind: str, words: str) -> None:
    marker = tmp_path / "marker"
    payload = pickle.dumps(Payload(marker))
    pickle.loads(payload).close()
    assert marker.exists(), "the payload works"
    marker.unlink()
    place = planted(kind, bundle.path, payload)
    if words:
        with pytest.raises(ConductorError, match=words):
            load_bundle(place)
    else:  # text that nobody reads as a program
        load_bundle(place)
    assert not marker.exists() and not Path("marker").exists()


# ------------------------------------------------------------------ the rest of the list
@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "config"))
    trust_key(new_key("ours").public)
    return write_bundle(tmp_path / "signed", **bundle_parts(), key="ours")


def swapped(folder: Path) -> None:
    """Two rows of the action head change places: every shape, type and range stays."""
    tensors = {name: array.copy() for name, array in load((folder / "policy.safetensors").read_bytes()).items()}
    for name in ("action.weight", "action.bias"):
        tensors[name] = np.roll(tensors[name], 1, axis=0)
    (folder / "policy.safetensors").write_bytes(save(tensors))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_swapped_tensors(signed: Bundle, kind: str, tmp_path: Path) -> None:
    swapped(signed.path)
    with pytest.raises(ConductorError, match=r"policy\.safetensors: its sha256 is not the one in the manifest"):
        load_bundle(signed.path)
    reseal(signed.path)
    with pytest.raises(ConductorError, match="is no signature of ours over this manifest"):
        load_bundle(signed.path)
    (signed.path / "manifest.sig").unlink()
    with pytest.raises(ConductorError, match="is not signed"):
        load_bundle(signed.path)
    with pytest.raises(ConductorError, match="this is another network"):
        load_bundle(signed.path, ANYONE)


def test_every_file_cut_anywhere(signed: Bundle) -> None:
    trusted = read_trust()
    for file in sorted(signed.path.iterdir()):
        content = file.read_bytes()
        for length in {0, 1, 7, 8, 9, len(content) // 2, len(content) - 1}:
            for seal in (False, True):
                file.write_bytes(content[:length])
                manifest = (signed.path / "manifest.json").read_bytes()
                if seal and file.name not in ("manifest.json", "manifest.sig"):
                    reseal(signed.path)
                with pytest.raises(ConductorError):
                    load_bundle(signed.path, trusted)
                (signed.path / "manifest.json").write_bytes(manifest)
            file.write_bytes(content)
    assert load_bundle(signed.path, trusted).signature.name == "ours"


def test_a_packed_bundle_cut_anywhere(signed: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "bundle.zip"
    pack_bundle(signed.path, place)
    content = place.read_bytes()
    for length in range(0, len(content), len(content) // 60):
        place.write_bytes(content[:length])
        with pytest.raises(ConductorError, match="is not a zip, is cut short"):
            load_bundle(place)
    place.write_bytes(content)
    assert load_bundle(place).digest == signed.digest

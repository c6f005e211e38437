"""A bundle comes back as it was written, and every way of not being one has its own sentence."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from conductor import bundle as module
from conductor.bundle import Bundle, load_bundle, write_bundle
from conductor.errors import ConductorError
from conductor.files import canonical
from conductor.manifest import COLUMNS, ranges_of, widest
from conductor.policy import make_policy
from pit import rules
from tests.conductor.helpers import NETWORK, SLOTS, bundle_parts, random_observations, random_tensors, reseal


def tensors_replaced(folder: Path, **tensors: np.ndarray) -> None:
    (folder / "policy.safetensors").write_bytes(save({**random_tensors(), **tensors}))
    reseal(folder)


def test_round_trip(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again.digest == bundle.digest == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert again.manifest.seeds == [2**63] and again.manifest.levels == ["11"] and again.manifest.rule.name == "critical_path"
    parts = bundle_parts()
    for obs, mask, action in zip(*(parts["golden"][k] for k in ("obs", "mask", "action")), strict=True):
        assert again.policy.act(obs, mask) == action


def test_round_trip_of_a_calibrated_rule(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=rules.N_WEIGHTS)
    rule = {"name": "calibrated", "params": {"weights": rules.table_of(weights)}}
    write_bundle(tmp_path / "bundle", **bundle_parts(), rule=rule)
    again = load_bundle(tmp_path / "bundle").manifest.rule
    read = rules.parameters(again.name, again.params)[3]
    assert read is not None and (read == weights).all()
    rule["params"] = {"weights": {"standard": {"bias": float("inf")}}}
    with pytest.raises(ConductorError, match="cannot be written as a bundle"):
        write_bundle(tmp_path / "other", **bundle_parts(), rule=rule)


def test_round_trip_of_slots(tmp_path: Path) -> None:
    parts = bundle_parts(1, SLOTS)
    write_bundle(tmp_path / "bundle", **parts)
    again = load_bundle(tmp_path / "bundle")
    assert again.manifest.network == SLOTS
    obs = parts["golden"]["obs"]
    np.testing.assert_array_equal(again.policy.logits_many(obs), make_policy(SLOTS, parts["tensors"]).logits_many(obs))
    with pytest.raises(ConductorError, match=r"tensor encoder\.bias is missing"):
        wrong = {name: array for name, array in parts["tensors"].items() if name != "encoder.bias"}
        write_bundle(tmp_path / "other", **{**parts, "tensors": wrong})
    with pytest.raises(ConductorError, match=r"tensor action\.bias is missing"):
        write_bundle(tmp_path / "other", **{**parts, "network": NETWORK.model_dump()})


def test_the_manifest_says_mlp_as_it_always_did(bundle: Bundle) -> None:
    """Earlier bundles hold these bytes and must load."""
    assert b'"network":{"activation":"tanh","kind":"mlp","layers":[16,8]}' in (bundle.path / "manifest.json").read_bytes()


def golden_replaced(folder: Path, action: np.ndarray) -> None:
    k = action.size
    obs, mask = np.zeros((k, 512), np.float32), np.ones((k, 128), np.uint8)
    (folder / "golden.safetensors").write_bytes(save({"obs": obs, "mask": mask, "action": action.astype(np.int64)}))
    reseal(folder)


def overflowing(folder: Path) -> None:
    """A network whose logits are never finite, and vectors that say so."""
    tensors_replaced(folder, **{name: np.full_like(array, 3e38) for name, array in random_tensors().items()})
    golden_replaced(folder, np.array([-1]))


def ranges(**columns: list[float]) -> dict[str, Any]:
    return {"decisions": 10, "columns": columns}


def itself(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    reseal(folder, files={**manifest["files"], "manifest.json": {"sha256": "0" * 64, "size": 1}})


def huge_table() -> bytes:
    """A safetensors file of 50,000 tensors without elements."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    table = json.dumps({f"t{i}": empty for i in range(50_000)}).encode()
    return len(table).to_bytes(8, "little") + table


REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no folder", lambda f: f.rename(f.with_name("away")), "there is no bundle"),
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    ("not JSON", lambda f: (f / "manifest.json").write_text("{"), "not canonical JSON"),
    (
        "spaces",
        lambda f: (f / "manifest.json").write_text(json.dumps(json.loads((f / "manifest.json").read_text()))),
        "canonical",
    ),
    ("nested", lambda f: (f / "manifest.json").write_text("[" * 100_000), "not canonical JSON"),
    ("unknown key", lambda f: reseal(f, more=1), "more: Extra inputs are not permitted"),
    ("format", lambda f: reseal(f, format="fq.policy/2"), "format"),
    (
        "kind",
        lambda f: reseal(f, network={"kind": "lstm", "layers": [16, 8], "activation": "tanh"}),
        "not match any of the expected",
    ),
    ("no kind", lambda f: reseal(f, network={"layers": [16, 8], "activation": "tanh"}), "discriminator 'kind'"),
    ("activation", lambda f: reseal(f, network={**NETWORK.model_dump(), "activation": "elu"}), "network.mlp.activation"),
    ("layers", lambda f: reseal(f, network={**NETWORK.model_dump(), "layers": [16, 0]}), "network.mlp.layers.1"),
    ("widths", lambda f: reseal(f, network={**SLOTS.model_dump(), "widths": [12]}), "network.slots.widths"),
    ("mixed", lambda f: reseal(f, network={**SLOTS.model_dump(), "layers": [12]}), "network.slots.layers"),
    ("other network", lambda f: reseal(f, network=SLOTS.model_dump()), "tensor action.bias does not belong"),
    ("rule", lambda f: reseal(f, rule={"name": "magic", "params": {}}), "rule 'magic' is unknown"),
    (
        "weight",
        lambda f: reseal(f, rule={"name": "calibrated", "params": {"weights": {"standard": {"charm": 1.0}}}}),
        "standard.charm is unknown",
    ),
    (
        "weight of text",
        lambda f: reseal(f, rule={"name": "calibrated", "params": {"weights": {"standard": {"bias": "1"}}}}),
        "rule.params.weights.table.standard.bias",
    ),
    ("no table", lambda f: reseal(f, rule={"name": "calibrated", "params": {"weights": 1}}), "weights must be a table"),
    (
        "table",
        lambda f: reseal(f, rule={"name": "critical_path_warm_wait", "params": {"theta": {"a": {"b": 1}}}}),
        "theta must be a number",
    ),
    ("variant", lambda f: reseal(f, rule={"name": "fifo", "params": {"variant": 1e6}}), "variant is 1000000.0; 0 (lite)"),
    ("range of nothing", lambda f: reseal(f, ranges=ranges(charm=[0.0, 0.0, 1.0, 1.0])), "charm is no column"),
    ("range in disorder", lambda f: reseal(f, ranges=ranges(elapsed=[0.0, 1.0, 0.5, 1.0])), "elapsed must be minimum"),
    ("range too short", lambda f: reseal(f, ranges=ranges(elapsed=[0.0, 1.0])), "at least 4 items"),
    ("manifest of itself", lambda f: itself(f), "whose hash it cannot hold"),
    ("missing file", lambda f: (f / "card.md").unlink(), "card.md: is missing"),
    ("extra file", lambda f: (f / "extra.bin").write_bytes(b"x"), "extra.bin: is a file too many"),
    (
        "in a folder",
        lambda f: (f.rename(f.with_name("away")), f.mkdir(), f.with_name("away").rename(f / "bundle")),
        "is none; name",
    ),
    ("folder inside", lambda f: (f / "more").mkdir(), "is not a plain file"),
    ("link", lambda f: ((f / "card.md").unlink(), (f / "card.md").symlink_to("/dev/zero")), "is not a plain file"),
    ("grown", lambda f: (f / "card.md").write_text("# Random weights\n\n"), "bytes where the manifest says"),
    ("changed", lambda f: (f / "card.md").write_text("# Random w3ights\n"), "its sha256 is not the one"),
    (
        "not safetensors",
        lambda f: ((f / "policy.safetensors").write_bytes(b"x" * 100), reseal(f)),
        "is not a safetensors file",
    ),
    ("extra tensor", lambda f: tensors_replaced(f, more=np.zeros(3, np.float32)), "tensor more does not belong"),
    ("dtype", lambda f: tensors_replaced(f, **{"action.bias": np.zeros(128, np.int64)}), "float32 (128,) is needed"),
    ("half", lambda f: tensors_replaced(f, **{"action.bias": np.zeros(128, np.float16)}), "has dtype F16"),
    ("shape", lambda f: tensors_replaced(f, **{"action.bias": np.zeros(127, np.float32)}), "float32 (128,) is needed"),
    (
        "swapped",
        lambda f: tensors_replaced(f, **{"policy.0.bias": np.zeros(8, np.float32), "policy.1.bias": np.zeros(16, np.float32)}),
        "tensor policy.0.bias is float32 (8,)",
    ),
    ("NaN", lambda f: tensors_replaced(f, **{"action.bias": np.full(128, np.nan, np.float32)}), "not finite"),
    ("another network", lambda f: tensors_replaced(f, **random_tensors(9)), "this is another network"),
    ("tables", lambda f: reseal(f, tables={"observation": "0", "action": "0", "rules": "0"}), "table it was trained over"),
    (
        "huge table",
        lambda f: ((f / "policy.safetensors").write_bytes(huge_table()), reseal(f)),
        "a table of at most 65536 bytes",
    ),
    ("too many vectors", lambda f: golden_replaced(f, np.tile(np.arange(10), 10)), "holds 100 vectors; 1 to 64 are needed"),
    ("logits that are not finite", overflowing, "vector 0 records action -1; there are 0 to 127"),
    ("an action beyond", lambda f: golden_replaced(f, np.array([128])), "vector 0 records action 128; there are 0 to 127"),
    ("no vectors in a row", lambda f: golden_replaced(f, np.array(3)), "holds 0 vectors"),
    ("no golden", lambda f: ((f / "golden.safetensors").write_bytes(save({})), reseal(f)), "obs, mask and action"),
]


@pytest.mark.parametrize(("change", "words"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refusals(bundle: Bundle, change: Callable[[Path], object], words: str) -> None:
    change(bundle.path)
    with pytest.raises(ConductorError) as caught:
        load_bundle(bundle.path)
    assert words in str(caught.value)


def test_checks_come_in_order(bundle: Bundle) -> None:
    """Of two faults the one is told that is cheaper and surer: hashes before the schema, tensors before golden vectors."""
    folder = bundle.path
    reseal(folder, more=1)
    (folder / "card.md").write_text("# Random w3ights\n")
    for words in ("card.md: its sha256", "more: Extra inputs"):
        with pytest.raises(ConductorError, match=words):
            load_bundle(folder)
        reseal(folder, more=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["more"]
    (folder / "manifest.json").write_bytes(canonical({**manifest, "tables": {}}))
    golden_replaced(folder, np.zeros(100))
    tensors_replaced(folder, **{"action.bias": np.full(128, np.nan, np.float32)})
    with pytest.raises(ConductorError, match="not finite"):
        load_bundle(folder)
    tensors_replaced(folder)
    with pytest.raises(ConductorError, match="table it was trained over"):
        load_bundle(folder)


def test_ranges_of_what_was_seen() -> None:
    obs = random_observations(2000)
    obs[:, 470] = 0.0
    obs[7, 470], obs[:, 471], obs[:, 472] = 9.0, 0.0, 0.25
    found = ranges_of(obs)
    names = list(COLUMNS)
    assert found["decisions"] == 2000 and names[471] not in found["columns"]
    assert found["columns"][names[470]] == [0.0, 0.0, 0.0, 9.0] and found["columns"][names[472]] == [0.25] * 4
    column = np.sort(obs[:, 400])
    assert found["columns"][names[400]] == [float(column[k]) for k in (0, 1, 1998, 1999)]
    other = ranges_of(obs[:, ::-1].copy())
    both = widest([found, other])
    assert both["decisions"] == 4000
    assert both["columns"][names[471]] == [min(0.0, x) if i < 2 else x for i, x in enumerate(other["columns"][names[471]])]
    assert both["columns"][names[40]][3] == max(obs[:, 40].max(), obs[:, 471].max())


def test_ranges_travel(tmp_path: Path) -> None:
    obs = random_observations(50)
    loaded = load_bundle(write_bundle(tmp_path / "bundle", **bundle_parts(), ranges=ranges_of(obs)).path)
    assert loaded.manifest.ranges is not None
    low, high, live = loaded.manifest.ranges.limits()
    assert live.tolist() == (obs != 0).any(axis=0).tolist() and low.dtype == np.float32
    assert (low <= high).all() and (high[~live] == 0).all()
    np.testing.assert_array_equal(low[live], np.sort(obs, axis=0)[0][live])


def test_what_was_checked_is_what_is_saved(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "card.md").write_text("changed")
    bundle.save(tmp_path / "copy")
    assert load_bundle(tmp_path / "copy").digest == bundle.digest


def test_a_pipe_is_no_file(bundle: Bundle) -> None:
    (bundle.path / "card.md").unlink()
    os.mkfifo(bundle.path / "card.md")
    with pytest.raises(ConductorError, match=r"card\.md: is not a plain file"):
        load_bundle(bundle.path)


def test_every_flipped_byte_is_noticed(bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    for path in sorted(bundle.path.iterdir()):
        content = path.read_bytes()
        for _ in range(20):
            changed = bytearray(content)
            changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            try:  # a flip inside a text of the manifest gives another manifest, which its digest tells
                other = load_bundle(bundle.path)
            except ConductorError:
                continue
            assert path.name == "manifest.json" and other.digest != bundle.digest
        path.write_bytes(content)
    assert load_bundle(bundle.path).digest == bundle.digest


def test_size_caps(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ConductorError, match="larger than 1000 bytes"):
        load_bundle(bundle.path)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    with pytest.raises(ConductorError, match="at most 3 are read"):
        load_bundle(bundle.path)


def test_write_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    for change, words in (
        (
            {"golden": {**bundle_parts()["golden"], "action": bundle_parts()["golden"]["action"][::-1].copy()}},
            "another network",
        ),
        ({"tensors": {**random_tensors(), "action.bias": np.full(128, np.inf, np.float32)}}, "not finite"),
        ({"tensors": {n: a.astype(np.float64) for n, a in random_tensors().items()}}, "has dtype F64"),
        ({"evaluation": [{"mean": float("nan")}]}, "cannot be written as a bundle"),
        ({"exposure": "some"}, "exposure"),
    ):
        with pytest.raises(ConductorError, match=words):
            write_bundle(tmp_path / "new", **{**bundle_parts(), **change})
        assert list(tmp_path.iterdir()) == []


def test_overwriting_must_be_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConductorError, match="exists already"):
        write_bundle(bundle.path, **bundle_parts(1))
    assert load_bundle(bundle.path).digest == bundle.digest
    other = write_bundle(bundle.path, **bundle_parts(1), overwrite=True)
    assert load_bundle(bundle.path).digest == other.digest != bundle.digest
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "link", "nowhere"])
def test_only_a_folder_is_overwritten(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.write_text("mine") if kind == "file" else target.symlink_to("bundle" if kind == "link" else "away")
    with pytest.raises(ConductorError, match="exists already"):
        write_bundle(target, **bundle_parts(1))
    with pytest.raises(ConductorError, match="is no folder, which alone is overwritten"):
        write_bundle(target, **bundle_parts(1), overwrite=True)
    assert target.read_text() == "mine" if kind == "file" else target.is_symlink()
    assert load_bundle(bundle.path).digest == bundle.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "target"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConductorError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "bundle", **bundle_parts())


def test_conductor_runs_where_the_learners_libraries_cannot_be_imported(bundle: Bundle, tmp_path: Path, root: Path) -> None:
    """Where torch, stable-baselines3 and gymnasium cannot be imported, the conductor loads a bundle and decides."""
    code = f"""
import sys
for name in ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "hydra"):
    sys.modules[name] = None
import numpy as np
import conductor.__main__, conductor.instruments.worker
from conductor.bundle import load_bundle
print(load_bundle({str(bundle.path)!r}).policy.act(np.zeros(512, np.float32), np.ones(128, bool)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert 0 <= int(done.stdout) < 128


def test_nothing_in_the_conductor_unpickles(root: Path) -> None:
    for file in (root / "conductor").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not {"pickle", "cloudpickle", "marshal", "shelve", "multiprocessing"} & {*names, module}, file
            assert not (isinstance(node, ast.Name) and node.id in ("eval", "exec")), file


def test_a_folder_of_bundles_says_which_may_be_meant(tmp_path: Path) -> None:
    for number in range(8):
        write_bundle(tmp_path / "bundles" / f"level-{number:02}", **bundle_parts()) if number == 3 else (
            tmp_path / "bundles" / f"level-{number:02}"
        ).mkdir(parents=True)
    with pytest.raises(ConductorError, match=r"holds no manifest\.json and so is no bundle; did you mean .*/level-03\?$"):
        load_bundle(tmp_path / "bundles")

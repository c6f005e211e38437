"""Keys, the trust store and signatures: what vouches for a bundle, and every way in which nothing does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conductor import trust
from conductor.__main__ import main
from conductor.bundle import Bundle, load_bundle, pack_bundle, sign_bundle, write_bundle
from conductor.errors import ConductorError
from conductor.files import canonical
from conductor.journal import read_journal
from conductor.trust import ANYONE, Trust, distrust_key, new_key, own_keys, read_trust, trust_key
from tests.conductor.helpers import bundle_parts, reseal, small_workflow


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of keys."""
    (tmp_path / "config").mkdir()
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def signed(config: Path, tmp_path: Path) -> Bundle:
    """A bundle signed by `ours`, which is trusted."""
    trust_key(new_key("ours").public)
    return write_bundle(tmp_path / "bundle", **bundle_parts(), key="ours")


def refused(place: Path, words: str, trust: Trust | None = None) -> None:
    with pytest.raises(ConductorError, match=words):
        load_bundle(place, trust)


def test_a_signed_bundle_is_known(signed: Bundle) -> None:
    found = load_bundle(signed.path).signature
    assert (found.state, found.name, found.allowed) == ("trusted", "ours", False)
    assert found.key == own_keys()[0].key and found.words() == f"signed by ours (key {found.key})"
    assert load_bundle(signed.path, ANYONE).signature.state == "foreign", "who trusts nobody knows nothing"


def test_unsigned_is_refused_only_where_a_key_is_trusted(config: Path, bundle: Bundle) -> None:
    assert load_bundle(bundle.path).signature.words() == "not signed"
    refused(bundle.path, "is not signed, and no key is trusted here", read_trust(require=True))
    key = trust_key(new_key("ours").public)
    refused(bundle.path, "is not signed, and only bundles signed by ours are trusted here; .*--allow-unsigned")
    allowed = load_bundle(bundle.path, read_trust(allow_unsigned=True)).signature
    assert allowed == ("unsigned", "", "", True) and allowed.words() == "not signed; allowed on demand"
    distrust_key(key.key)
    assert load_bundle(bundle.path).signature.state == "unsigned"


def test_a_foreign_key_is_refused_as_none(signed: Bundle, tmp_path: Path) -> None:
    new_key("theirs")
    other = write_bundle(tmp_path / "other", **bundle_parts(1), key="theirs")
    refused(other.path, "which is not trusted here, and ")
    assert load_bundle(other.path, read_trust(allow_unsigned=True)).signature.allowed
    distrust_key("ours")
    refused(signed.path, "which is not trusted here, and ", read_trust(require=True))


def forged(folder: Path, **changes: Any) -> None:
    seal = json.loads((folder / "manifest.sig").read_text())
    (folder / "manifest.sig").write_bytes(canonical({**seal, **changes}))


FORGERIES: list[tuple[str, Callable[[Path], object], str]] = [
    ("changed manifest", lambda f: reseal(f, seeds=[1]), "is no signature of ours over this manifest"),
    ("changed file", lambda f: (f / "card.md").write_text("# Random w3ights\n"), "its sha256"),
    ("flipped", lambda f: forged(f, signature="00" * 64), "is no signature of ours"),
    ("bits", lambda f: forged(f, signature="zz" * 64), "signature: String should match"),
    ("short", lambda f: forged(f, signature="00"), "signature: String should match"),
    ("version", lambda f: forged(f, format="fq.signature/0"), "format: Input should be 'fq.signature/1'"),
    ("more", lambda f: forged(f, more=1), "more: Extra inputs"),
    ("spaces", lambda f: (f / "manifest.sig").write_text((f / "manifest.sig").read_text() + "\n"), "not canonical JSON"),
    ("empty", lambda f: (f / "manifest.sig").write_bytes(b""), "not canonical JSON"),
    ("large", lambda f: (f / "manifest.sig").write_bytes(b"0" * 2000), "larger than 1024 bytes"),
    ("list", lambda f: (f / "manifest.sig").write_bytes(b"[]\n"), "document: Input should be"),
]


@pytest.mark.parametrize(("change", "words"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_forgeries(signed: Bundle, change: Callable[[Path], object], words: str) -> None:
    """Nobody asks for these: an unsigned bundle may be let in, a wrong signature may not."""
    change(signed.path)
    refused(signed.path, words)
    refused(signed.path, words, read_trust(allow_unsigned=True))


def test_an_old_signature_over_another_manifest_never_fits(signed: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", **bundle_parts(1))
    shutil.copy(signed.path / "manifest.sig", other.path / "manifest.sig")
    refused(other.path, "is no signature of ours over this manifest; the bundle was changed after it was signed")
    # Nor does one over the manifest's bytes alone, made for another purpose.
    manifest = (other.path / "manifest.json").read_bytes()
    forged(other.path, signature=trust.private_key("ours").sign(manifest).hex())
    refused(other.path, "is no signature of ours")
    forged(other.path, signature=trust.private_key("ours").sign(b"fq.policy/1\n" + manifest).hex())
    assert load_bundle(other.path).signature.name == "ours"


def test_the_signature_is_judged_before_anything_is_parsed(signed: Bundle) -> None:
    (signed.path / "manifest.json").write_text("[" * 1000)
    refused(signed.path, "is no signature of ours")


def test_sign_again_and_pack(signed: Bundle, tmp_path: Path) -> None:
    new_key("second")
    assert sign_bundle(signed.path, "second").digest == signed.digest
    refused(signed.path, "which is not trusted here")
    sign_bundle(signed.path, "ours")
    pack_bundle(signed.path, tmp_path / "bundle.zip")
    packed = load_bundle(tmp_path / "bundle.zip")
    assert packed.digest == signed.digest and packed.signature.name == "ours" and packed.contents == signed.contents
    for act, words in (
        (lambda: sign_bundle(tmp_path / "bundle.zip", "ours"), "sign a bundle before it is packed"),
        (lambda: sign_bundle(signed.path, "third"), "key 'third' does not lie in .*`conductor keys new third` makes it"),
        (lambda: pack_bundle(signed.path, tmp_path / "bundle.zip"), "exists already"),
        (lambda: write_bundle(tmp_path / "new", **bundle_parts(), key="third"), "key 'third' does not lie"),
    ):
        with pytest.raises(ConductorError, match=words):
            act()
    assert not (tmp_path / "new").exists()


def test_keys_are_made_and_kept_with_care(config: Path) -> None:
    key = new_key("ours")
    private = key.public.with_suffix(".key")
    assert oct(private.stat().st_mode & 0o777) == "0o600" and oct(private.parent.stat().st_mode & 0o077) == "0o0"
    assert [own.name for own in own_keys()] == ["ours"] and not read_trust().required, "one's own key is not trusted by itself"
    with pytest.raises(ConductorError, match="exists already"):
        new_key("ours")
    for name in ("../up", "", ".hidden", "a/b", "a\n", "x" * 65):
        with pytest.raises(ConductorError, match="letters, digits"):
            new_key(name)
    private.chmod(0o640)
    with pytest.raises(ConductorError, match="others may read this private key; chmod 600"):
        trust.private_key("ours")
    private.chmod(0o600)
    private.write_bytes(b"x")
    with pytest.raises(ConductorError, match="is no private key in PEM"):
        trust.private_key("ours")


def test_only_public_ed25519_keys_are_trusted(config: Path, tmp_path: Path) -> None:
    key = new_key("ours")
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "curve.pub").write_bytes(pem)
    (tmp_path / "zero.pub").write_bytes(bytes(2**20 + 1))
    for path, words in (
        (key.public.with_suffix(".key"), "is no public key in PEM"),
        (tmp_path / "curve.pub", "is a key of another kind"),
        (tmp_path / "zero.pub", "is larger than"),
        (tmp_path / "none.pub", "cannot be read"),
    ):
        with pytest.raises(ConductorError, match=words):
            trust_key(path)
    trust_key(key.public, "partner")
    with pytest.raises(ConductorError, match="another key is trusted under this name"):
        trust_key(new_key("new").public, "partner")
    assert [known.name for known in read_trust().keys.values()] == ["partner"]
    with pytest.raises(ConductorError, match="no key is trusted under this name"):
        distrust_key("ours")


def test_a_damaged_trust_store_trusts_nobody_and_says_so(signed: Bundle, config: Path) -> None:
    """It must not be read as an empty one, where nothing is asked."""
    store = config / "trust.json"
    good = store.read_text()
    data = json.loads(good)
    key, known = next(iter(data["keys"].items()))
    for content, words in (
        ("", "not canonical JSON"),
        ("{}\n", "format: Field required"),
        (canonical({**data, "keys": {"0" * 32: known}}).decode(), "is not the id of ours's key"),
        (canonical({**data, "keys": {key: {**known, "name": "a b"}}}).decode(), "name: String should match"),
    ):
        store.write_text(content)
        refused(signed.path, words)
    store.write_text(good)
    store.chmod(0o666)
    refused(signed.path, "others may write it, and so decide whom you trust")
    store.chmod(0o644)
    assert load_bundle(signed.path).signature.state == "trusted"


def test_a_trust_store_that_others_could_change_is_not_read(signed: Bundle, config: Path) -> None:
    """Also if there is none, for they could have taken it away. In a folder like /tmp nobody can."""
    config.chmod(0o777)
    refused(signed.path, f"{config}: others may write it, and so decide whom you trust; chmod go-w {config}")
    for act in (lambda: new_key("new"), lambda: distrust_key("ours"), lambda: trust.private_key("ours")):
        with pytest.raises(ConductorError, match="others may write it"):
            act()
    (config / "trust.json").rename(config / "away")
    refused(signed.path, "others may write it")
    config.chmod(0o1777)
    assert load_bundle(signed.path).signature.state == "foreign"
    (config / "away").rename(config / "trust.json")
    assert load_bundle(signed.path).signature.state == "trusted"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["trust.json", "", "keys/ours.key"])
def test_what_belongs_to_somebody_else_is_not_trusted(signed: Bundle, config: Path, name: str) -> None:
    os.chown(config / name, 65534, -1)
    with pytest.raises(ConductorError, match=rf"{config / name}: belongs to another user \(uid 65534\)"):
        trust.sign(b"", "ours") if "key" in name else read_trust()


def test_changes_at_once_are_all_there_in_the_end(config: Path) -> None:
    keys = [new_key(f"key-{number}").public for number in range(16)]
    trust_key(keys[0])
    with ThreadPoolExecutor(len(keys)) as pool:
        away = pool.submit(distrust_key, "key-0")
        for done in [pool.submit(trust_key, key) for key in keys[1:]]:
            done.result()
        away.result()
    assert {known.name for known in read_trust().keys.values()} == {key.stem for key in keys[1:]}


def test_a_pair_of_keys_that_was_never_finished_hides_no_other(config: Path) -> None:
    """The process dies when one half stands and the other is about to."""
    new_key("first")
    code = """
import os, sys
from conductor.trust import new_key
def die(event, arguments):
    if event == "os.rename" and (names := os.listdir(os.environ["FQ_CONFIG"] + "/keys")) and "second" in str(names):
        halves.append(1)
        if len(halves) > 1:
            os._exit(9)
halves = []
sys.addaudithook(die)
new_key("second")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [key.name for key in own_keys()] == ["first"]
    with pytest.raises(ConductorError, match=r"second\.pub: exists already"):
        new_key("second")


def test_where_keys_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQ_CONFIG", "/a")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/b")
    assert trust.config_folder() == Path("/a")
    monkeypatch.delenv("FQ_CONFIG")
    assert trust.config_folder() == Path("/b/function-quest")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert trust.config_folder() == Path("/c/.config/function-quest")


def test_keys_that_are_not_found_are_not_taken_for_none(
    signed: Bundle, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once a key is trusted, no way to miss the store lets an unsigned bundle in."""
    (signed.path / trust.SIGNATURE).unlink()

    def refused(words: str, **environment: str) -> None:
        with monkeypatch.context() as patch:
            for name in ("FQ_CONFIG", "XDG_CONFIG_HOME", "HOME"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            for arguments in (["verify", str(signed.path)], ["keys", "list"]):
                assert main(arguments) == 2, arguments
                error = capsys.readouterr().err
                assert error.startswith("conductor: ") and error.count("\n") == 1 and words in error, error

    nowhere = str(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(nowhere)
    refused("FQ_CONFIG names /nonexistent/keys, which does not exist", FQ_CONFIG="/nonexistent/keys")
    refused(f"FQ_CONFIG names {nowhere}, which does not exist", FQ_CONFIG=nowhere)
    refused("/dev/null: is no folder", FQ_CONFIG=os.devnull)
    refused(f"{tmp_path}/link: is a link that leads nowhere", FQ_CONFIG=str(tmp_path / "link"))
    refused(f"{tmp_path}/link: is a link that leads nowhere", XDG_CONFIG_HOME=str(tmp_path / "link"))
    refused("cannot be read (Not a directory)", XDG_CONFIG_HOME=os.devnull)
    refused("HOME is not set, so that nothing is known of the keys")
    refused(f"HOME names {nowhere}, which does not exist", HOME=nowhere)
    (config / trust.STORE).rename(config / "elsewhere")
    (config / trust.STORE).symlink_to(nowhere)
    refused(f"{trust.STORE}: is a link that leads nowhere", FQ_CONFIG=str(config))
    (config / trust.STORE).unlink()
    (config / trust.STORE).symlink_to("elsewhere")
    with pytest.raises(ConductorError, match="only bundles signed by ours"):
        load_bundle(signed.path)


def test_a_folder_of_keys_is_made_where_its_parent_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "new"))
    key = new_key("ours")
    assert key.public.parent == tmp_path / "new" / "keys"
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "other"))
    trust_key(key.public)
    assert list(read_trust().keys) == [key.key]
    monkeypatch.setenv("FQ_CONFIG", str(tmp_path / "away" / "new"))
    with pytest.raises(ConductorError, match=r"names .*new, which does not exist"):
        new_key("ours")
    monkeypatch.delenv("FQ_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))  # which is made when it is needed
    assert not read_trust().keys and new_key("ours").public.is_file()


def test_the_command_line(config: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, packed = str(bundle.path), str(tmp_path / "bundle.zip")

    def said(status: int, *arguments: str) -> str:
        assert main(arguments) == status, arguments
        captured = capsys.readouterr()
        if status == 2:
            assert captured.err.startswith("conductor: ") and captured.err.count("\n") == 1
        return captured.err if status else captured.out

    assert "a whole bundle, not signed" in said(0, "verify", folder)
    assert "no key is trusted" in said(2, "verify", folder, "--require-signature")
    assert "give others" in said(0, "keys", "new", "ours")
    public = str(config / "keys" / "ours.pub")
    assert "yours" in said(0, "keys", "list")
    assert "is trusted; bundles that no trusted key signed are refused" in said(0, "keys", "trust", public, "--name", "us")
    assert "is not signed, and only bundles signed by us are trusted here" in said(2, "verify", folder)
    assert "not signed; allowed on demand" in said(0, "verify", folder, "--allow-unsigned")
    assert "ours vouches for" in said(0, "sign", folder, "--key", "ours")
    assert "signed by us (key" in said(0, "verify", folder) and "ranges: not measured" in said(0, "verify", folder)
    assert "bundle.zip: the bundle" in said(0, "pack", folder, packed)
    assert "signed by us (key" in said(0, "verify", packed)
    listed = said(0, "keys", "list").splitlines()
    assert [line.split()[0] for line in listed] == ["yours", "trusted"] and listed[1].endswith("us")
    assert "trusted no longer; none is left" in said(0, "keys", "distrust", "us")
    assert "no key is trusted" in said(0, "keys", "list")


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import save

    (bundle.path / "policy.safetensors").write_bytes(save({"\x1b[2J\n": np.zeros(1, np.float32)}))
    reseal(bundle.path)
    assert main(["verify", str(bundle.path)]) == 2
    error = capsys.readouterr().err
    assert "tensor \\x1b[2J\\n does not" in error and "\x1b" not in error and error.count("\n") == 1


def test_nothing_of_a_key_is_in_a_bundle(signed: Bundle, config: Path) -> None:
    secret = (config / "keys" / "ours.key").read_bytes().splitlines()[1]
    for root, _, files in os.walk(signed.path):
        for name in files:
            assert secret not in (Path(root) / name).read_bytes()


def test_a_run_records_who_vouched(
    config: Path, bundle: Bundle, write_workflow: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unsigned bundle that is let in is recorded; what began with it goes on with it, and with no other."""
    trust_key(new_key("ours").public)
    file = write_workflow(small_workflow())
    start = ["run", str(file), "--bundle", str(bundle.path), "--runs", str(file.parent / "runs")]
    assert main(start) == 2 and "only bundles signed by ours are trusted here" in capsys.readouterr().err
    assert main([*start, "--allow-unsigned"]) == 0
    assert "not signed; allowed on demand" in capsys.readouterr().out
    pack_bundle(sign_bundle(bundle.path, "ours").path, file.parent / "bundle.zip")
    start[3] = str(file.parent / "bundle.zip")
    assert main(start) == 0 and "signed by ours (key" in capsys.readouterr().out
    for folder in (file.parent / "runs").iterdir():
        first = next(iter(read_journal(folder))).data
        assert first["bundle"] == bundle.digest == load_bundle(folder / "bundle", ANYONE).digest
        assert first["signature"] == load_bundle(folder / "bundle", read_trust(allow_unsigned=True)).signature.words()

"""Zips of bundles: what we and `zip -0` write is read, and nothing cleverer is."""

from __future__ import annotations

import io
import shutil
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conductor.archive import pack, unpack
from conductor.bundle import Bundle, load_bundle, pack_bundle
from conductor.errors import ConductorError

NAMES = ("a.json", "b.bin", "c.md")
CONTENTS = {"a.json": b"{}\n", "b.bin": bytes(range(256)) * 5, "c.md": b""}


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def zipped(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.comment = comment
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


WHOLE = pack(CONTENTS)
END = len(WHOLE) - 22
DIRECTORY = struct.unpack_from("<I", WHOLE, END + 16)[0]


def test_round_trip() -> None:
    assert unpack(WHOLE, NAMES, "zip") == CONTENTS and pack(dict(reversed(CONTENTS.items()))) == WHOLE
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as file:
        assert file.testzip() is None and file.namelist() == sorted(CONTENTS)
    assert unpack(zipped(), NAMES, "zip") == {}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zipped(("../a.json", b"")), r"holds '\.\./a\.json'; a bundle holds a\.json, b\.bin, c\.md and no"),
        (lambda: zipped(("/a.json", b"")), "holds '/a.json'"),
        (lambda: zipped(("a.json_.md", b"")).replace(b"_", b"\0"), r"holds 'a\.json\\x00\.md'"),
        (lambda: zipped(("A.JSON", b"")), "holds 'A.JSON'"),
        (lambda: zipped(("\N{FULLWIDTH LATIN SMALL LETTER A}.json", b"")), "holds "),
        (lambda: zipped(("sub/", b"")), "holds 'sub/'"),
        (lambda: zipped(("a.json", b"1"), ("a.json", b"2")), "a.json: stands there twice"),
        (lambda: zipped((entry("a.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "a.json: is not a plain file"),
        (lambda: zipped((entry("a.json", stat.S_IFIFO | 0o777), b"")), "a.json: is not a plain file"),
        (lambda: zipped(("a.json", bytes(10**7)), method=zipfile.ZIP_DEFLATED), "a.json: is compressed"),
        (lambda: zipped(("a.json", b""), comment=b"x" * 40), "goes on behind its end"),
        (lambda: zipped(*((f"{i}", b"") for i in range(9))), "holds 9 files; a bundle holds at most 3"),
        (lambda: b"#!/bin/sh\n" + WHOLE, "its directory does not fit"),
        (lambda: WHOLE + b"more", "goes on behind its end"),
        (lambda: b"", "is not a zip"),
        (lambda: WHOLE[-22:], "its directory does not fit"),
        (lambda: patched(WHOLE, 31 + len("a.json"), b"]"), "a.json: its checksum is wrong"),
        (lambda: patched(WHOLE, 30, b"c"), "a.json: its header says something else"),
        (lambda: patched(WHOLE, 22, struct.pack("<I", 2)), "a.json: its header says something else"),
        (lambda: patched(WHOLE, 8, b"\x08"), "a.json: its header says something else"),
        (lambda: patched(WHOLE, DIRECTORY + 8, b"\x01"), "a.json: is compressed or encrypted"),
        (lambda: patched(WHOLE, DIRECTORY + 20, struct.pack("<II", 2**31, 2**31)), "header says something else"),
        (lambda: patched(WHOLE, DIRECTORY + 42, struct.pack("<I", 7)), "a.json: begins at byte 7"),
        (lambda: patched(WHOLE, DIRECTORY, b"PX"), "its directory is damaged"),
        (lambda: patched(WHOLE, DIRECTORY + 28, struct.pack("<H", 2**15)), "its directory is damaged"),
        (lambda: patched(WHOLE, END + 8, struct.pack("<HH", 2, 2)), "bytes of its directory belong to no file"),
        (lambda: patched(WHOLE, END + 10, struct.pack("<H", 2)), "its directory does not fit"),
        (lambda: patched(WHOLE, END + 8, struct.pack("<HH", 0, 0)), "of its directory belong to no file"),
    ],
)
def test_refusals(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ConductorError, match=words):
        unpack(make(), NAMES, "zip")


def test_what_hides_between_files_is_refused() -> None:
    hidden = b"hidden"
    content = patched(WHOLE[:DIRECTORY] + hidden + WHOLE[DIRECTORY:], END + len(hidden) + 16, struct.pack("<I", DIRECTORY + 6))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.testzip() is None, "others take it"
    with pytest.raises(ConductorError, match="6 bytes before the directory belong to no file"):
        unpack(content, NAMES, "zip")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 40))
def test_changed_bytes_give_one_sentence_or_the_same_files(changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(WHOLE[: len(WHOLE) - cut])
    for at, value in changes:
        if at < len(content):
            content[at] = value
    try:
        found = unpack(bytes(content), NAMES, "zip")
    except ConductorError:
        return
    assert found == CONTENTS, "only times and versions may differ"


@pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed here")
def test_what_zip_writes(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "other.zip"
    subprocess.run(["zip", "-0", "-q", "-j", "-r", target, bundle.path], check=True, timeout=60)
    assert load_bundle(target).digest == bundle.digest


def test_a_bundle_in_a_zip(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "bundle.zip"
    assert pack_bundle(bundle.path, target).digest == bundle.digest
    again = load_bundle(target)
    assert (again.digest, again.contents) == (bundle.digest, bundle.contents)
    with pytest.raises(ConductorError, match="there is no bundle"):
        load_bundle(tmp_path / "none.zip")
    with open(target, "ab") as file:
        file.truncate(20 * 2**20)
    with pytest.raises(ConductorError, match="is larger than"):
        load_bundle(target)

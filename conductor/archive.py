"""Bundles as one file: a zip that holds a few plain files, stored as they are, and nothing between or behind them.

The reader is our own because the usual ones are generous: they take compressed entries, doubled names, links, paths, and bytes
that no entry owns. It reads one layout only: entries back to back, the directory, the end. `zip -0 -X` and `pack` write it.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from conductor.errors import ConductorError

_LOCAL = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, packed, size, name, extra
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # signature, by, version, flags, method, time, date, crc, packed, size, name, extra,
# comment, disk, attributes inside, attributes outside, offset
_END = struct.Struct("<4s4H2IH")  # signature, disk, disk of the directory, entries here, entries, size, offset, comment
MAX_EXTRA = 64  # bytes of an entry's extra field, which some writers fill with times
OVERHEAD = 1024  # bytes of headers for each entry, at most: both headers, twice the name, twice the extra field


class _Entry(NamedTuple):
    name: str
    offset: int
    size: int
    crc: int


def pack(contents: Mapping[str, bytes]) -> bytes:
    """The zip of these files. Equal contents give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name)  # of 1980: no clock
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            file.writestr(entry, contents[name])
    return buffer.getvalue()


def unpack(content: bytes, names: Collection[str], where: str) -> dict[str, bytes]:
    """The files of a zip that `pack` could have written: name -> content.

    Raises:
        ConductorError: `where` is no such zip: compressed, encrypted, a name that is not in `names` or stands twice, a link or
            folder, sizes or checksums that do not fit, bytes that belong to no file.
    """
    contents: dict[str, bytes] = {}
    position = 0
    entries, directory = _directory(content, names, where)
    for entry in entries:
        if entry.name in contents:
            raise ConductorError(f"{where}: {entry.name}: stands there twice; a bundle holds each file once")
        if entry.offset != position:
            raise ConductorError(f"{where}: {entry.name}: begins at byte {entry.offset}, not where the one before ends")
        begin = _begin_of(content, entry, directory, where)
        position = begin + entry.size
        if position > directory:
            raise ConductorError(f"{where}: {entry.name}: is cut short or reaches into the directory")
        contents[entry.name] = content[begin:position]
        if zlib.crc32(contents[entry.name]) != entry.crc:
            raise ConductorError(f"{where}: {entry.name}: its checksum is wrong; the file was damaged")
    if position != directory:
        raise ConductorError(f"{where}: {directory - position} bytes before the directory belong to no file")
    return contents


def _directory(content: bytes, names: Collection[str], where: str) -> tuple[list[_Entry], int]:
    """The entries of the directory, and where it begins."""
    last = len(content) - _END.size
    if last < 0 or content[last : last + 4] != b"PK\x05\x06":
        raise ConductorError(f"{where}: is not a zip, is cut short, or goes on behind its end")
    _, disk, other, here, count, size, begin, comment = _END.unpack_from(content, last)
    if (disk, other, comment) != (0, 0, 0) or here != count or begin + size != last:
        raise ConductorError(f"{where}: its directory does not fit the file")
    if count > len(names):
        raise ConductorError(f"{where}: holds {count} files; a bundle holds at most {len(names)}")
    entries, position = [], begin
    for _ in range(count):
        if position + _CENTRAL.size > last:
            raise ConductorError(f"{where}: its directory is cut short")
        (
            mark, _, _, flags, method, _, _, crc, packed, full, name_length, extra, words, start, _, outside, offset,
        ) = _CENTRAL.unpack_from(content, position)  # fmt: skip
        position += _CENTRAL.size
        raw = content[position : position + name_length]
        position += name_length + extra + words
        if mark != b"PK\x01\x02" or position > last:
            raise ConductorError(f"{where}: its directory is damaged")
        name = raw.decode("ascii", "backslashreplace")
        if name not in names:
            raise ConductorError(
                f"{where}: holds {name[:80]!r}; a bundle holds {', '.join(sorted(names))} and no folder or other path"
            )
        kind = stat.S_IFMT(outside >> 16)
        if kind not in (0, stat.S_IFREG) or outside & 0x10:
            raise ConductorError(f"{where}: {name}: is not a plain file; a bundle holds nothing else")
        if method or flags & ~0x0800 or packed != full:  # 0x0800: the name is UTF-8
            raise ConductorError(f"{where}: {name}: is compressed or encrypted; store it as it is (zip -0)")
        if start or words or extra > MAX_EXTRA:
            raise ConductorError(f"{where}: {name}: its entry in the directory holds more than a bundle's")
        entries.append(_Entry(name, offset, full, crc))
    if position != last:
        raise ConductorError(f"{where}: {last - position} bytes of its directory belong to no file")
    return entries, begin


def _begin_of(content: bytes, entry: _Entry, directory: int, where: str) -> int:
    """Where an entry's content begins, its own header being what the directory says of it."""
    if entry.offset + _LOCAL.size > directory:
        raise ConductorError(f"{where}: {entry.name}: is cut short or reaches into the directory")
    mark, _, flags, method, _, _, crc, packed, full, name, extra = _LOCAL.unpack_from(content, entry.offset)
    begin = entry.offset + _LOCAL.size
    told = (mark, flags & ~0x0800, method, crc, packed, full, content[begin : begin + name])
    if told != (b"PK\x03\x04", 0, 0, entry.crc, entry.size, entry.size, entry.name.encode()) or extra > MAX_EXTRA:
        raise ConductorError(f"{where}: {entry.name}: its header says something else than the directory")
    return begin + name + extra

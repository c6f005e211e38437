"""The head of a journal: the number and hash of its last row, kept outside of it.

A hash chain shows every change but one: rows that are missing at the end. They are missed by comparing with the head, which
lies beside the journal and, if asked, a second time where whoever can cut the journal cannot reach it. It is written after
each commit and not forced to the disk: after a power loss it may be older than the journal, never newer. A journal that does
not hold the row of each of its heads is not opened for writing, which would put a newer head in the place of the proof.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from conductor.errors import ConductorError

FILE = "journal.head"
_LINE = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")


class Head(NamedTuple):
    """The last row that is known to have been committed."""

    seq: int
    hash: str


def read_head(path: Path) -> Head | None:
    """The head in a file; None if there is no such file. Raises ConductorError for one that holds no head."""
    content, before = b"", None
    try:
        while content != before:  # what is read while another head is written may be a part of each
            before, content = content, path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConductorError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:  # its conductor died before the first commit
        return None
    match = _LINE.fullmatch(content)
    if match is None:
        raise ConductorError(f"{path}: holds no number and hash of a row; delete it to take the journal beside it as it is")
    return Head(int(match[1]), match[2].decode())


class HeadFile:
    """A head that is kept up to date."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, head: Head) -> None:
        """One write over the old head, of the same length. Raises OSError."""
        os.pwrite(self._file, b"%020d %s\n" % (head.seq, head.hash.encode()), 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

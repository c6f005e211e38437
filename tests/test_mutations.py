"""The watch over mutations: who works or waits for ever is ended and named, and the others are tried all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutations

MODULE = """
import os, sys, time
print("ready", flush=True)
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    while seed == 2:
        pass
    if seed == 3:
        time.sleep(3600)
    if seed == 5:
        os._exit(7)
    if seed == 6:
        time.sleep(1.5)  # a machine that is busy with something else
    print(seed, "fine", flush=True)
"""


def test_who_never_answers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleepy.py").write_text(MODULE)
    monkeypatch.setattr(mutations, "CPU", 0.3)
    monkeypatch.setattr(mutations, "SILENCE", 6.0)
    found = mutations.outcomes(tmp_path, "sleepy", 8)
    assert [seed for seed, outcome in found.items() if outcome != "fine"] == [2, 3, 5] and len(found) == 8
    spent = [float(found[seed].removeprefix("fault nothing for ").split(" ")[0]) for seed in (2, 3)]
    assert spent[0] >= 0.3 > 0.1 > spent[1], "who works is told from who waits"
    assert found[5] == "fault the process ended with 7"

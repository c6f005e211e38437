"""One instance in the terminal: what is shown is what the kernel plays, as text, as GIF and as PNG."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import cli, watch
from experiments.config import folder_of
from experiments.errors import ExperimentError
from experiments.evaluate import LOOKAHEAD, WARM_WAIT, Referee, open_bundle, play_method
from fq_env.level import load_level
from fq_env.level_files import LEVELS
from tests.experiments.bundles import random_bundle


def settings(*words: str) -> watch.WatchConfig:
    return cli.read("watch", watch.WatchConfig, [*words, "fit=8"], "")


@pytest.mark.parametrize("level", [1, 11])
@pytest.mark.parametrize("player", ["random", "fifo", "critical_path", WARM_WAIT])
def test_a_rule_step_by_step_is_the_rule_at_kernel_speed(capsys: pytest.CaptureFixture[str], level: int, player: str) -> None:
    expected = Referee(load_level(level), 8).players("validation", 1, 5, [player])[player][0]
    episode = watch.watch(settings(f"level={level}", f"player={player}", "split=validation", "instance=5"))
    assert (episode["total"], episode["makespan"]) == (expected["total"], expected["makespan"])
    out = capsys.readouterr().out
    assert out.count("\nclock ") == episode["steps"] + 1
    assert f"step {episode['steps']}: " in out
    assert f"{episode['total']:.3f}" in out.splitlines()[-6]
    assert max(map(len, out.splitlines()[-7:])) <= 80
    assert ("best possible" in out) == (level == 1)


def test_who_looks_ahead_is_shown_step_by_step() -> None:
    expected = Referee(load_level(11), 8).players("test", 1, 0, [LOOKAHEAD])[LOOKAHEAD][0]
    episode = watch.watch(settings("level=11", "player=lookahead"))
    assert (episode["total"], episode["makespan"]) == (expected["total"], expected["makespan"])


def test_random_plays_the_same_each_time() -> None:
    one, two, other = (watch.watch(settings("level=11", "player=random", f"instance={i}")) for i in (0, 0, 1))
    assert one == two != other


def test_the_kept_bundle_as_text_and_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = random_bundle(tmp_path / "bundles" / "level-01", weights=0, seed=0)
    expected = play_method([open_bundle(bundle)], load_level(1), split="test", n=1)[0, 0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["watch", "level=1", "gif=film.gif", "png=end.png"])
    watch.main()
    out = capsys.readouterr().out
    assert "bundles/level-01" in out
    assert f" {expected['total']:.3f} " in out
    with Image.open("film.gif") as film, Image.open("end.png") as end:
        assert film.size == end.size == (960, 540)
        assert 1 < film.n_frames <= expected["steps"] + 1  # equal neighbours are one frame
        assert film.info["duration"] == 250
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB"), np.float64)
        assert np.abs(last - np.asarray(end.convert("RGB"))).mean() < 4  # a GIF has 256 colours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "end.png", "film.gif"]


def test_a_terminal_draws_over_the_last_frame(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    watch.show("one\ntwo", 0.0)
    assert capsys.readouterr().out == "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    watch.show("one\ntwo", 1e9)
    assert capsys.readouterr().out == "one\ntwo\n\n"


def test_a_narrow_terminal_is_kept_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    watch.show("score   at best 0.931 (at the start 0.945) | warnings 0 | spent 0.0\n\nend", 0.0)
    lines = re.sub(r"\x1b\[.", "", capsys.readouterr().out).splitlines()
    assert lines == ["score   at best 0.931 (at the start", "        0.945) | warnings 0 | spent 0.0", "", "end"]


def test_a_reader_who_leaves_ends_the_command_without_a_word(root: Path) -> None:
    command = (sys.executable, "-m", "experiments.watch", "level=1", "player=fifo", "fit=8")
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and "Traceback" not in err and "BrokenPipe" not in err


def test_a_level_file_with_several_places_is_filmed_decision_by_decision(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = Path("levels/level_01_first_key.yaml").read_text(encoding="utf-8").replace("places: 1", "places: 3")
    (tmp_path / "hands.yaml").write_text(text, encoding="utf-8")
    episode = watch.watch(settings(f"level={tmp_path}/hands.yaml", "player=fifo", f"gif={tmp_path}/film.gif", "pause=0.1"))
    assert "best possible" in capsys.readouterr().out
    with Image.open(tmp_path / "film.gif") as film:
        durations = []
        for k in range(film.n_frames):
            film.seek(k)
            durations.append(film.info["duration"])
    assert len(durations) == episode["steps"] + 1
    assert set(durations[:-1]) == {100}
    assert durations[-1] > 5 * durations[0]  # time to read the end


def test_the_last_action_of_a_frame_is_the_one_that_was_taken() -> None:
    view = {"slots": [{"head": 4}, {"head": 7}]}
    assert watch.taken(view, 7 + 4) == {"verb": "hold", "task": 7}
    assert watch.taken(view, 1) == {"verb": "standard", "task": 4}
    assert watch.taken(view, 112) == {"verb": "wait", "task": None}


def test_a_level_of_ones_own_has_a_bundle_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is named by its file, not by its number, which another file may have, too."""
    monkeypatch.chdir(tmp_path)
    text = LEVELS[1].read_text(encoding="utf-8").replace("number: 1\n", "number: 0\n").replace("places: 1", "places: 3")
    for name in ("one.yaml", "an other.yaml"):
        Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        watch.watch(settings("level=an other.yaml"))
    said = str(caught.value)
    assert said.startswith("bundles/level-an other: no bundle is kept for level an other.yaml; name one by bundle=DIR, ")
    assert said.endswith("python -m experiments.train level='an other.yaml'")
    Path("runs/level-an other/latest/bundle").mkdir(parents=True)
    with pytest.raises(ExperimentError, match=r"bundle='runs/level-an other/latest/bundle', which is there"):
        watch.watch(settings("level=an other.yaml"))
    random_bundle(Path("bundles/level-one"), weights=0, seed=0)
    assert watch.contestant(settings("level=one.yaml"))[0] == "bundles/level-one"
    names = {word: folder_of(word) for word in (1, "11", "plain-11", str(LEVELS[11]), "one.yaml")}
    assert list(names.values()) == ["level-01", "level-11", "level-11", "level-11", "level-one"]

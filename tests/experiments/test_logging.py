"""What a training records: metrics.csv, TensorBoard, W&B; each number once, also where a run was resumed."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.callbacks import ACTIONS_SINCE_CLOCK
from experiments.config import CHOICES
from experiments.examiner import Look
from experiments.interrupts import Interrupted
from experiments.records import Rows
from experiments.train import resume, train
from pit import layout
from tests.experiments.training import ROLLOUT, config, rows

PARTS = ("total", "base", "efficiency", "stability", "optimization", "makespan")
PROBES = ("wrong_calls", "cold_starts_per_call")  # of levels 1 and 11


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def interrupt(look: Look) -> None:
    if look.frames == 4 * ROLLOUT:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the checkpoint is of three rollouts, the records know of four


@pytest.fixture(scope="module", params=CHOICES["algo"])
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on level 11 that was stopped after four rollouts and resumed after three."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("logging") / "run"
    with pytest.raises(Interrupted):
        train(config("level=11", f"algo={request.param}", f"folder={folder}"), on_look=interrupt)
    resume(folder)
    return folder


def numbers(folder: Path) -> list[dict[str, float]]:
    found = Rows(folder / "metrics.csv", frames=8 * ROLLOUT).rows
    assert [row["frames"] for row in found] == [ROLLOUT * k for k in range(1, 9)], "a row per rollout, none twice"
    return found


def test_every_row_holds_what_a_rollout_is_judged_by(resumed: Path) -> None:
    assert sum("episode/finished" in row for row in numbers(resumed)) >= 4
    for k, row in enumerate(numbers(resumed), start=1):
        for name in (*PARTS, *PROBES):
            assert (f"episode/{name}" in row) == ("episode/finished" in row)
            assert (f"validation/{name}" in row) == (k % 2 == 0)
        assert 0 <= row.get("episode/total", 0) <= 1
        for name in ("loss", "value_loss", "policy_gradient_loss", "entropy", "approx_kl", "learning_rate"):
            assert np.isfinite(row[f"train/{name}"])
        assert 0 < row["train/entropy"] < np.log(layout.N_ACTIONS)
        assert 1 <= row["decisions/legal_actions"] <= layout.N_ACTIONS
        assert row["decisions/legal_share"] == row["decisions/legal_actions"] / layout.N_ACTIONS
        assert row["decisions/zero_time_per_clock_jump"] > 0, "level 11 starts several calls at one time"


def test_the_time_is_divided(resumed: Path) -> None:
    before = 0.0
    for k, row in enumerate(numbers(resumed), start=1):
        seconds = [row[f"time/{name}_seconds"] for name in ("rollout", "update", "look")]
        shares = [row[f"time/{name}_share"] for name in ("rollout", "update", "look")]
        lap = row["time/seconds"] - before
        before = row["time/seconds"]
        assert ROLLOUT / row["time/frames_per_second"] == pytest.approx(lap)
        np.testing.assert_allclose(shares[1:], np.divide(seconds[1:], lap), rtol=1e-6)
        assert 0 < shares[0] <= seconds[0] / lap * (1 + 1e-6), "a learner that measures its rollouts itself may count more"
        assert sum(shares) <= 1
        assert (shares[2] > 0) == (k % 2 == 0), "a look takes its share where there is one"


def test_tensorboard_has_every_number_once(resumed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list((resumed / "tensorboard").iterdir())
    assert len(files) == 2, "one per process"
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = numbers(resumed)
    kept = {key for row in found for key in row} - {"frames", "train/n_updates"}
    kept -= {f"time/{name}" for name in ("iterations", "time_elapsed", "total_timesteps")}  # told to be for the console
    assert set(events.Tags()["scalars"]) == kept
    for key in kept:
        wanted = [(row["frames"], np.float32(row[key])) for row in found if key in row]
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(key)] == wanted, key


def test_a_killed_writer_leaves_readable_events(tmp_path: Path) -> None:
    """The last record of a killed process may be cut off; what the next process writes is read all the same."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from experiments.records import TensorBoard

    for start, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, start)
        for step in steps:
            board.write({"a": float(step), "b": "text"}, {"a": None, "b": None}, step)  # type: ignore[dict-item]
        board.close()
        if start is None:
            (file,) = tmp_path.iterdir()
            file.write_bytes(file.read_bytes()[:-5])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_legal_actions_and_zero_time_are_what_the_engine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column that tells whether the clock moved agrees with the clock itself, and the row with both."""
    from fq_env.sb3 import FunctionQuestVecEnv

    step, seen = FunctionQuestVecEnv.step_wait, []

    def watched(self: FunctionQuestVecEnv) -> Any:
        before = self._engine._hots["now"].copy()
        obs, rewards, dones, infos = step(self)
        moved = (self._engine._hots["now"] != before) | dones
        seen.append((int(np.count_nonzero(self._engine.masks)), int(np.count_nonzero(~moved))))
        np.testing.assert_array_equal(obs[:, ACTIONS_SINCE_CLOCK] == 0, moved)
        return obs, rewards, dones, infos

    monkeypatch.setattr(FunctionQuestVecEnv, "step_wait", watched)
    train(config("level=11", "algo=maskable_ppo", f"total_timesteps={ROLLOUT}", f"folder={tmp_path / 'run'}"))
    row = Rows(tmp_path / "run" / "metrics.csv", frames=ROLLOUT).rows[0]
    legal, still = np.sum(seen, axis=0)
    assert row["decisions/legal_actions"] == legal / ROLLOUT
    assert row["decisions/zero_time_per_clock_jump"] == still / (ROLLOUT - still)


# --------------------------------------------------------------------------- W&B
def messages(data: bytes) -> Iterator[bytes]:
    """The messages of a .wandb file: seven bytes, then LevelDB's log (blocks of 32 KiB; checksum, length, kind, data)."""
    at, message = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no head fits into the rest of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message = data[at + 7 : at + 7 + length] if kind in (1, 2) else message + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield message


def history(folder: Path, rows: int) -> list[list[dict[str, Any]]]:
    """Of each offline run in the folder, in order: the rows that W&B stored, read from its own file, once there are `rows`.

    W&B's service may still be writing when the run is finished.
    """
    for _ in range(100):
        runs = stored(folder)
        if sum(map(len, runs)) >= rows:
            break
        time.sleep(0.1)
    return runs


def stored(folder: Path) -> list[list[dict[str, Any]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        records = [Record.FromString(message) for message in messages(file.read_bytes())]
        rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
        runs.append([{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows])
    return runs


@pytest.mark.slow
def test_wandb_gets_a_row_per_rollout_and_keeps_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config("algo=maskable_ppo", "wandb.mode=offline", f"folder={folder}"), on_look=interrupt)
    resume(folder)
    first, second = history(folder, 9)
    assert [int(row["_step"]) for row in first] == [ROLLOUT * k for k in (1, 2, 3, 4)]
    assert [int(row["_step"]) for row in second] == [ROLLOUT * k for k in (4, 5, 6, 7, 8)]
    wanted = rows(folder)
    for row in [*first[:3], *second]:
        mine = wanted[int(row["_step"]) // ROLLOUT - 1]
        assert float(row["episode/total"]) == float(mine["episode/total"])
    names = {path.name.rsplit("-", 1)[1] for path in (folder / "wandb").glob("offline-run-*")}
    assert len(names) == 1, "both parts are one run of W&B"


@pytest.mark.slow
@pytest.mark.parametrize("account", [True, False])
def test_wandb_without_network_is_told_once_and_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], account: bool
) -> None:
    monkeypatch.setattr("experiments.records.WANDB_SECONDS", 3.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))  # no account of this machine's user
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if account:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    # Four rows: W&B 0.31 now and then loses the end of a file that ends shortly after a block of 32 KiB.
    train(config("algo=maskable_ppo", "wandb.mode=online", "total_timesteps=2048", f"folder={tmp_path / 'run'}"))
    err = [line for line in capsys.readouterr().err.splitlines() if "W&B is not reachable" in line]
    assert len(err) == 1
    assert "recorded offline" in err[0]
    (found,) = history(tmp_path / "run", 4)
    assert [row["_step"] for row in found] == [ROLLOUT * k for k in (1, 2, 3, 4)]

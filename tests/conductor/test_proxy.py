"""Faults on purpose: the same fate for the same seed, and a run that ends with the right output all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conductor.errors import ConductorError
from conductor.instruments import CallError, Result
from conductor.instruments.proxy import ProxyInstrument
from conductor.orchestrator import begin
from conductor.report import report_run, verify_run
from conductor.workflow import load_workflow
from tests.conductor.helpers import output_of, small_workflow
from tests.conductor.test_instruments import job

ECHO = {"kind": "command", "argv": ["echo", "-n", "hello"]}


def proxy(**more: Any) -> ProxyInstrument:
    return ProxyInstrument(**{"of": ECHO, "faults": {}, "delay_seconds": (0.0, 0.0), **more})


def test_without_faults_it_is_the_other_instrument(tmp_path: Path) -> None:
    result = proxy().call(job(tmp_path))
    assert result == Result({"code": 0, "stdout": "hello", "stderr": ""}, None) and proxy().level == proxy()._inner.level


@pytest.mark.parametrize(("fault", "kind"), [("throttle", "throttled"), ("error", "error")])
def test_a_fault_that_fails_the_call(tmp_path: Path, fault: str, kind: str) -> None:
    with pytest.raises(CallError, match="the proxy says") as caught:
        proxy(faults={fault: 1.0, "delay": 1.0}).call(job(tmp_path))
    assert caught.value.kind == kind


def test_faults_that_change_the_output(tmp_path: Path) -> None:
    plain = {"code": 0, "stdout": "hello", "stderr": ""}
    for seed in range(6):
        corrupt = proxy(faults={"corrupt": 1}, seed=seed).call(job(tmp_path)).value
        assert corrupt.keys() == plain.keys() and sum(corrupt[name] != plain[name] for name in plain) == 1
    assert proxy(faults={"schema": 1}).call(job(tmp_path)).value == {"version": 2, "data": plain}


def test_how_long_a_delay_takes_is_no_time_limit(write_workflow: Callable[[dict[str, Any]], Path]) -> None:
    """The time limit is every function's, so that the proxy's own key has another name."""
    plan = {"kind": "proxy", "of": {"kind": "python", "call": "work:add"}, "faults": {"delay": 1}, "seconds": 5}
    read = load_workflow(write_workflow(small_workflow(fa={**plan, "delay_seconds": [0, 0.5]}))).plan.functions["fa"]
    assert read.seconds == 5 and read.instrument("standard")["options"]["delay_seconds"] == [0, 0.5]
    with pytest.raises(ConductorError, match=r"instruments\.functions\.fa\.seconds.*valid number"):
        load_workflow(write_workflow(small_workflow(fa={**plan, "seconds": [0, 0.5]})))


def fates(seed: int, folder: Path) -> list[str]:
    """What becomes of sixty attempts."""
    instrument = proxy(of={"kind": "python", "call": "builtins:repr"}, faults={"throttle": 0.3, "error": 0.3}, seed=seed)
    found = []
    for attempt in range(60):
        try:
            instrument.call(replace(job(folder), attempt=attempt))
            found.append("ok")
        except CallError as error:
            found.append(error.kind)
    return found


def test_the_same_seed_brings_the_same_faults(tmp_path: Path) -> None:
    first = fates(1, tmp_path)
    assert first == fates(1, tmp_path) != fates(2, tmp_path)
    assert {"ok", "throttled", "error"} == set(first) and 8 <= first.count("throttled") <= 30


def test_a_run_with_faults_ends_with_the_right_output(
    write_workflow: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """A worker that exits, results that never come, throttling and delays: each call is called until it has its result."""
    faults = {"delay": 0.3, "throttle": 0.4, "error": 0.2, "exit": 0.3, "drop": 0.2}
    names = ("fa", "fb", "plain")
    plan = {
        name: {
            "kind": "proxy", "of": {"kind": "python", "call": "work:add"}, "faults": {**faults}, "seed": 5, "seconds": 3,
            "delay_seconds": [0.0, 0.1],
        }
        for name in names
    }  # fmt: skip
    workflow = small_workflow(**plan)
    folder = begin(load_workflow(write_workflow(workflow)), tmp_path / "runs", strategy="parallel").folder
    report = report_run(folder)
    assert report.status == "solved" and output_of(folder, report.outputs["c"]) == 123
    results = [call.result for call in report.calls]
    assert {"throttled", "error"} <= set(results) and results.count("ok") == 4
    texts = [call.text for call in report.calls if call.result != "ok"]
    assert any("status 137" in text for text in texts) and any("within its time limit" in text for text in texts)
    assert verify_run(folder).ended

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients.agent.config import DeviceConfig, save_config
from clients.agent.doctor import machine
from clients.agent.doctor.finding import Result, Subject
from clients.agent.doctor.machine import (
    Ended,
    check_config,
    check_disk,
    check_python,
    check_torch,
    run_process,
)
from clients.agent.doctor.torch_op import try_torch

GOOD: dict[str, Any] = {
    "python": "3.10.12",
    "torch": "2.13.0",
    "device": "Orin",
    "ok": True,
    "built_cuda": "12.6",
}


def answering(status: int = 0, output: str = "", errors: str = "") -> machine.Run:
    return lambda command, limit_s: Ended(status, output, errors)


def test_this_python_is_recent_enough(subject: Subject) -> None:
    assert check_python(subject).result is Result.ok


def test_an_old_python_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (99, 0))
    assert check_python(subject).result is Result.fail


@pytest.mark.parametrize(
    ("change", "result", "told"),
    [
        ({}, Result.ok, "on Orin agrees with the CPU's"),
        ({"device": "cpu", "built_cuda": ""}, Result.ok, "cpu-only"),
        ({"device": "cpu"}, Result.warn, "built for CUDA 12.6, finds no device"),
        ({"ok": False, "error": "it differs by 3"}, Result.fail, "it differs by 3"),
        ({"python": "3.8.10"}, Result.fail, "in Python 3.8.10"),
        ({"torch": "", "error": "ImportError: libcudart"}, Result.fail, "libcudart"),
    ],
)
def test_the_trial_of_torch_is_judged_by_what_it_computed(
    subject: Subject, change: dict[str, Any], result: Result, told: str
) -> None:
    noise = "Some library says hello\n"
    finding = check_torch(subject, answering(output=noise + json.dumps({**GOOD, **change})))
    assert finding.result is result
    assert told in finding.detail
    assert bool(finding.fix) is (result is not Result.ok)


def test_a_torch_for_another_machine_ends_the_trial_and_not_the_doctor(subject: Subject) -> None:
    finding = check_torch(subject, answering(status=-4))
    assert finding.result is Result.fail
    assert "SIGILL" in finding.detail


def test_a_trial_that_prints_nothing_or_hangs_or_cannot_start_fails(subject: Subject) -> None:
    silent = check_torch(subject, answering(status=1, errors="x\nSyntaxError: bad"))
    hanging = check_torch(subject, lambda command, limit_s: None)
    absent = check_torch(replace(subject, python="/no/such/python"))
    assert [each.result for each in (silent, hanging, absent)] == [Result.fail] * 3
    assert "SyntaxError: bad" in silent.detail
    assert "did not answer" in hanging.detail
    assert "cannot be started" in absent.detail


def test_the_trial_runs_by_the_agents_interpreter_and_alone(subject: Subject) -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str], limit_s: float) -> Ended:
        asked.append(command)
        return Ended(0, json.dumps(GOOD), "")

    check_torch(replace(subject, python="/usr/bin/python3.10"), run)
    [(python, script)] = asked
    assert python == "/usr/bin/python3.10"
    assert Path(script).name == "torch_op.py"
    assert "clients" not in Path(script).read_text()


def test_torch_really_multiplies_here() -> None:
    pytest.importorskip("torch")
    answer = try_torch()
    assert answer["ok"], answer
    assert answer["error"] == ""


def test_a_product_that_differs_from_the_cpus_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Wrong:
        """A device whose products are off by one."""

        def __init__(self, value: Any) -> None:
            self.value = value

        def __matmul__(self, other: Any) -> Any:
            return self.value @ other.value + 1

    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Fake")
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: Wrong(self))
    answer = try_torch()
    assert not answer["ok"]
    assert answer["device"] == "Fake"
    assert "differs from the CPU by 1" in answer["error"]


def test_a_device_that_raises_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def refuse(index: int) -> str:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    assert "no kernel image" in try_torch()["error"]


def test_without_torch_the_trial_answers_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    answer = try_torch()
    assert (answer["ok"], answer["torch"]) == (False, "")


def test_a_process_that_takes_too_long_is_ended() -> None:
    assert run_process([sys.executable, "-c", "import time; time.sleep(60)"], 0.3) is None
    ended = run_process([sys.executable, "-c", "print(1)"], 30.0)
    assert ended == Ended(0, "1\n", "")


def test_a_configuration_is_checked(subject: Subject) -> None:
    assert check_config(subject).result is Result.fail
    save_config(DeviceConfig(name="a"), subject.state)
    assert check_config(subject).result is Result.warn
    save_config(DeviceConfig(name="a", server="h:1"), subject.state)
    assert check_config(subject).result is Result.ok


def test_a_writable_folder_with_room_is_fine_and_stays_as_it_was(subject: Subject) -> None:
    before = sorted(subject.state.iterdir())
    assert check_disk(subject).result is Result.ok
    assert sorted(subject.state.iterdir()) == before


def test_a_missing_folder_fails(subject: Subject, tmp_path: Path) -> None:
    finding = check_disk(replace(subject, state=tmp_path / "none"))
    assert finding.result is Result.fail
    assert "fleet-device init" in finding.fix


def test_a_disk_that_is_full_or_tight_says_so(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(bytes_: int) -> None:
        usage = SimpleNamespace(free=bytes_)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    free(2**20)
    assert check_disk(subject).result is Result.fail
    free(100 * 2**20)
    assert check_disk(subject).result is Result.warn
    free(2**40)
    assert check_disk(subject).result is Result.ok


def test_a_folder_that_cannot_be_written_fails(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    finding = check_disk(subject)
    assert finding.result is Result.fail
    assert "Read-only file system" in finding.detail


def test_a_process_is_never_given_our_standard_input() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from clients.agent.doctor.machine import run_process;"
            "print(run_process([sys.executable, '-c', 'print(input())'], 30).status)",
        ],
        input="hello\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[4],
    )
    assert done.stdout.strip() == "1"

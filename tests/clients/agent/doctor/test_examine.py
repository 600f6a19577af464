from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clients.agent import doctor
from clients.agent.config import DeviceConfig, Interpreters, save_config
from clients.agent.doctor import (
    CHECKS,
    Check,
    Finding,
    Result,
    Subject,
    examine,
    integrity,
    subject_of,
    worst,
)
from clients.agent.doctor.integrity import check_model, check_store
from clients.agent.doctor.machine import Ended, Run


def raising(subject: Subject) -> Finding:
    raise RuntimeError("broken check")


def test_no_check_raises_whatever_the_device_is(tmp_path: Path) -> None:
    quick = [check for check in CHECKS if check.name not in ("torch", "model")]
    for state in (tmp_path / "none", tmp_path):
        findings = examine(subject_of(state), quick)
        assert [finding.check for finding in findings] == [check.name for check in quick]
        assert worst(findings) is Result.fail
        for finding in findings:
            assert finding.detail
            assert finding.result is not Result.fail or finding.fix
            json.dumps(finding.record())


def test_a_check_that_raises_or_hangs_is_a_finding(subject: Subject) -> None:
    leave = threading.Event()

    def hanging(subject: Subject) -> Finding:
        leave.wait(10)
        raise AssertionError("nobody waits for this")

    start = time.monotonic()
    raised, hung = examine(subject, [Check("one", 5.0, raising), Check("two", 0.05, hanging)])
    leave.set()
    assert time.monotonic() - start < 4
    assert (raised.check, raised.result) == ("one", Result.fail)
    assert "RuntimeError: broken check" in raised.detail
    assert (hung.check, hung.result) == ("two", Result.fail)
    assert "within 0.05 s" in hung.detail


def test_only_some_checks_can_be_asked_for(subject: Subject) -> None:
    assert [finding.check for finding in examine(subject, only=["clock", "key"])] == [
        "clock",
        "key",
    ]


def test_every_check_has_its_own_name_and_a_limit() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) == 13
    assert all(0 < check.limit_s <= 120 for check in CHECKS)


def test_the_worst_result_counts_and_a_skip_is_no_failure() -> None:
    def finding(result: Result) -> Finding:
        return Finding("x", result, "y")

    ok, warn, fail, skip = map(finding, (Result.ok, Result.warn, Result.fail, Result.skip))
    assert worst([]) is Result.ok
    assert worst([ok, skip]) is Result.ok
    assert worst([ok, warn, skip]) is Result.warn
    assert worst([warn, fail]) is Result.fail


def test_the_subject_is_read_from_its_folder(tmp_path: Path) -> None:
    assert subject_of(tmp_path) == Subject(tmp_path, None, sys.executable)
    config = DeviceConfig(name="a", interpreters=Interpreters(agent="/usr/bin/python3"))
    save_config(config, tmp_path)
    assert subject_of(tmp_path) == Subject(tmp_path, config, "/usr/bin/python3")


def test_an_installation_without_store_and_serving_skips_them(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "STORE", "clients.agent.absent")
    monkeypatch.setattr(integrity, "SERVING", "absent.altogether")
    assert check_store(subject).result is Result.skip
    assert check_model(subject).result is Result.skip


def test_a_store_is_whole_or_damaged_or_not_yet_there(subject: Subject) -> None:
    store = pytest.importorskip("clients.agent.store.store")
    assert check_store(subject).result is Result.skip
    with store.open_store(subject.state, clock=time.time):
        pass
    assert check_store(subject).result is Result.ok
    (subject.state / f"{store.FILE_NAME}.damaged-20261121T000000Z").write_bytes(b"x")
    assert check_store(subject).result is Result.warn
    (subject.state / store.FILE_NAME).write_bytes(b"not a database at all" * 500)
    finding = check_store(subject)
    assert finding.result is Result.fail
    assert finding.fix


def model_trial(output: str, status: int = 0, errors: str = "") -> Run:
    def run(command: Sequence[str], limit_s: float) -> Ended:
        assert list(command[1:3]) == ["-m", integrity.TRIAL]
        return Ended(status, output, errors)

    return run


def test_models_are_verified_by_the_agents_interpreter(subject: Subject) -> None:
    assert check_model(subject).result is Result.skip
    (subject.state / "model").mkdir()
    whole = [{"what": "base", "digest": "ab", "problem": ""}]
    broken = [*whole, {"what": "current", "digest": "", "problem": "is cut off"}]
    assert check_model(subject, model_trial(json.dumps(whole))).result is Result.ok
    finding = check_model(subject, model_trial("noise\n" + json.dumps(broken)))
    assert finding.result is Result.fail
    assert "current: is cut off" in finding.detail
    absent = check_model(subject, model_trial("", 1, "No module named 'torch'"))
    assert (absent.result, "No module" in absent.detail) == (Result.skip, True)
    assert check_model(subject, lambda command, limit_s: None).result is Result.fail
    assert check_model(replace(subject, python="/no/python")).result is Result.skip


def test_the_package_says_what_it_exports() -> None:
    assert set(doctor.__all__) <= set(vars(doctor))

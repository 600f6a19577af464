from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from clients.agent.cli.root import run
from clients.agent.config import DECISIONS_FILE, PRIVATE_KEY, load_config
from clients.agent.decisions import DecisionLog
from clients.agent.doctor.model_trial import try_models
from clients.agent.policy import Policy, may_train
from clients.agent.power.readings import Readings
from tests.clients.agent.cli.conftest import Json


def test_a_new_device_says_what_it_is_and_what_it_has_not(ask: Json, state: Path) -> None:
    ask("init", "--name", "kitchen-1")
    code, envelope = ask("status")
    data = envelope["data"]
    assert code == 0
    assert (data["name"], data["server"], data["has_key"]) == ("kitchen-1", "", True)
    assert (data["served"], data["store"], data["last_decision"]) == (None, None, None)


def test_the_last_decision_is_shown(
    ask: Json, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("init", "--name", "a")
    decision = may_train(Policy(), Readings(temperature_c=99.0), datetime(2026, 11, 21))
    DecisionLog(state / DECISIONS_FILE).write(decision)
    assert ask("status")[1]["data"]["last_decision"]["reasons"] == ["too-hot"]
    assert run(["status"]) == 0
    assert "too-hot" in capsys.readouterr().out


def test_the_store_is_counted_once_there_is_one(
    ask: Json, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = pytest.importorskip("clients.agent.store.store")
    ask("init", "--name", "a")
    with store.open_store(state, clock=time.time):
        pass
    counted = ask("status")[1]["data"]["store"]
    assert (counted["windows"], counted["labelled"], counted["by_label"]) == (0, 0, {})
    assert run(["status"]) == 0
    assert "0 windows" in capsys.readouterr().out
    (state / store.FILE_NAME).write_bytes(b"not a database at all" * 500)
    assert "problem" in ask("status")[1]["data"]["store"]
    assert run(["status"]) == 0


def test_the_served_release_is_shown_without_torch(
    ask: Json, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pytest.importorskip("clients.agent.serving.folder")
    records = pytest.importorskip("clients.agent.serving.records")
    ask("init", "--name", "a")
    (state / "model").mkdir()
    pointer = records.Pointer(number=7, state="ab" * 32, digest="cd" * 32)
    folder.ModelFolder(state).point(folder.CURRENT, pointer)
    assert ask("status")[1]["data"]["served"]["number"] == 7
    assert run(["status"]) == 0
    assert "release 7, cdcdcdcdcdcd" in capsys.readouterr().out


def test_a_base_given_to_init_is_served_and_found_whole(
    ask: Json, state: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("torch")
    base: Path = request.getfixturevalue("tiny_base_file")
    assert ask("init", "--name", "a", "--base", base)[0] == 0
    assert load_config(state).base == str(base.absolute())
    assert load_config(state).base_path(state).is_file()
    assert ask("status")[1]["data"]["served"]["number"] == 0
    code, envelope = ask("doctor", "--only", "model")
    [finding] = envelope["data"]["findings"]
    assert (code, finding["result"]) == (0, "ok"), finding
    current = next((state / "model" / "served").glob("*.safetensors"))
    current.write_bytes(current.read_bytes()[:-1])
    assert [each["what"] for each in try_models(state) if each["problem"]] == ["current"]


def test_a_status_without_a_device_says_how_to_make_one(ask: Json, state: Path) -> None:
    code, envelope = ask("status")
    assert (code, envelope["error_code"]) == (4, "no-device")


def test_a_warning_is_an_exit_code_only_where_that_is_asked_for(ask: Json) -> None:
    ask("init", "--name", "a")
    code, envelope = ask("doctor", "--only", "agent")
    assert (code, envelope["data"]["verdict"]) == (0, "warn")  # no agent runs
    assert ask("doctor", "--only", "agent", "--strict")[0] == 1


def test_the_doctor_exits_1_when_a_check_fails_and_says_how_to_mend_it(
    ask: Json, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("init", "--name", "a")
    code, envelope = ask("doctor", "--only", "key", "--only", "python")
    assert (code, envelope["data"]["verdict"]) == (0, "ok")
    (state / PRIVATE_KEY).chmod(0o644)
    code, envelope = ask("doctor", "--only", "key")
    assert (code, envelope["status"], envelope["data"]["verdict"]) == (1, "ok", "fail")
    [finding] = envelope["data"]["findings"]
    assert finding["fix"] == f"chmod 600 {state / PRIVATE_KEY}"
    assert run(["doctor", "--only", "key"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("fail key ")
    assert "chmod 600" in printed


def test_an_unknown_check_is_refused_with_the_known_ones(ask: Json, state: Path) -> None:
    code, envelope = ask("doctor", "--only", "weather")
    assert (code, envelope["error_code"]) == (4, "unknown-check")
    assert "clock" in envelope["hint"]

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simulations.simulate
from server.control.cli.root import run
from server.store import read_json

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def tiny(tiny_data: Path, tiny_base_file: Path, tmp_path: Path) -> list[str]:
    """Flags of a quick run."""
    flags = f"--data {tiny_data} --base {tiny_base_file} --rank 2 --rounds 1 --out {tmp_path}/run"
    return [*flags.split(), "--methods", "core,local", "--rate", "core=0.05", "--rate", "local=0.1"]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = run(["simulate", *arguments, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def test_a_run_prints_its_report_as_one_envelope(ask: Ask, tiny: list[str], tmp_path: Path) -> None:
    code, envelope = ask(*tiny)
    assert (code, envelope["status"], envelope["schema_version"]) == (0, "ok", "1")
    assert envelope["data"] == read_json(tmp_path / "run" / "report.json")
    assert envelope["data"]["methods"]["core"]["learning_rate"] == 0.05


def test_a_run_draws_a_table_with_every_method_and_what_to_do_next(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path
) -> None:
    assert run(["simulate", *tiny]) == 0
    text = capsys.readouterr().out
    for word in ("before", "core", "local", "report.md", "fleet release list"):
        assert word in text
    digest = read_json(tmp_path / "run" / "report.json")["release"]["digest"]
    assert digest in text.replace("\n", "")


def test_a_run_keeps_the_rule_that_it_was_given(ask: Ask, tiny: list[str], tmp_path: Path) -> None:
    code, _ = ask(*tiny, "--rule", "clip:1")
    assert code == 0
    assert read_json(tmp_path / "run" / "run.json")["config"]["rule"] == "clip:1.0"
    record = read_json(tmp_path / "run" / "core" / "rounds" / "000001.json")
    assert (record["rule"]["name"], record["rule"]["norm"], record["reason"]) == ("clip", 1.0, "")


def test_an_interrupt_exits_130_says_how_to_go_on_and_resumes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    tiny: list[str],
    tmp_path: Path,
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulations.simulate, "_federated", interrupted)
        assert run(["simulate", *tiny]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"fleet simulate --out {tmp_path}/run --resume" in printed.err
    code, envelope = ask("--out", f"{tmp_path}/run", "--resume")
    assert code == 0
    assert list(envelope["data"]["methods"]) == ["core", "local"]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--model", "nonsense"], "unknown-model"),
        (["--rank", "100000"], "rank-too-large"),
        (["--rank", "0"], "run-config"),
        (["--rounds", "0"], "run-config"),
        (["--frame", "qr"], "run-config"),
        (["--methods", "dora"], "unknown-method"),
        (["--methods", ""], "unknown-method"),
        (["--rate", "core"], "rate"),
        (["--rate", "core=-1"], "rate"),
        (["--rate", "core=nan"], "rate"),
        (["--data", "nonsense"], "data-unknown"),
        (["--rule", "krum"], "run-config"),
        (["--rule", "krum:1"], "rule-above-cohort"),
    ],
)
def test_a_wrong_flag_is_an_error_with_its_code_and_leaves_no_folder(
    ask: Ask, tiny_data: Path, tmp_path: Path, flags: list[str], error: str
) -> None:
    out = tmp_path / "run"
    code, envelope = ask("--data", str(tiny_data), "--out", str(out), "--base-epochs", "1", *flags)
    assert (code, envelope["error_code"]) == (4, error)
    assert envelope["message"]
    assert not out.exists()


def test_a_run_is_not_overwritten_and_a_resumed_one_takes_no_flags(
    ask: Ask, tiny: list[str], tmp_path: Path
) -> None:
    assert ask(*tiny)[0] == 0
    code, envelope = ask(*tiny)
    assert (code, envelope["error_code"]) == (4, "out-in-use")
    assert "--resume" in envelope["hint"]
    code, envelope = ask("--out", f"{tmp_path}/run", "--resume", "--rounds", "9")
    assert (code, envelope["error_code"]) == (4, "resume-with-flags")
    code, envelope = ask("--out", f"{tmp_path}/none", "--resume")
    assert (code, envelope["error_code"]) == (4, "nothing-to-resume")
    code, envelope = ask("--resume")
    assert (code, envelope["error_code"]) == (4, "nothing-to-resume")


VIRTUAL = "--devices 40 --windows-per-device 6 --class-mix 0.5 --variation gain:10+noise:5"


def test_a_fleet_of_virtual_devices_trains_by_cohorts_and_a_sample_of_it_is_evaluated(
    ask: Ask, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = [*VIRTUAL.split(), "--cohort", "5", "--evaluate-devices", "7"]
    code, envelope = ask(*tiny, *flags)
    assert (code, envelope["data"]["devices"]) == (0, 40)
    record = read_json(tmp_path / "run" / "core" / "rounds" / "000001.json")
    assert len(record["accepted"]) == 5
    assert all(a["device"].startswith("device-000") for a in record["accepted"])
    core, local = (
        read_json(tmp_path / "run" / name / "evaluations" / "000001.json")
        for name in ("core", "local")
    )
    assert len(core["devices"]) == 7
    assert set(local["devices"]) == set(core["devices"])


def test_a_variation_that_is_none_is_refused_before_anything_is_written(
    ask: Ask, tiny: list[str], tmp_path: Path
) -> None:
    code, envelope = ask(*tiny, "--variation", "wobble:3")
    assert (code, envelope["error_code"]) == (4, "bad-shift")
    assert not (tmp_path / "run").exists()

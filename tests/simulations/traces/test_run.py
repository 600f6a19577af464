"""A simulation with a trace, from its flags to its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleet.config import RunConfig
from fleet.errors import InputError
from server.control.cli.root import run as run_command
from server.store import RunFolder, read_json
from simulations.engines import Engine, make_grid
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from simulations.traces.account import account_of
from simulations.traces.field import Field
from simulations.traces.trace import parse_trace, trace_text
from tests.simulations.tiny_fleet import MakeConfig

FAST = """
about = "devices that are always there and take no time"
[[availability]]
kind = "always"
source = "a test"
[[device]]
name = "fast"
share = 1.0
train_windows_per_s = inf
judge_windows_per_s = inf
down_bytes_per_s = inf
up_bytes_per_s = inf
latency_s = 0.0
source = "a test"
"""
POOR = """
about = "devices that come and go, are slow, and lose what they send"
[[availability]]
kind = "pareto"
shape = 1.5
least_online_s = 60.0
least_offline_s = 30.0
source = "a test"
[[device]]
name = "quick"
share = 0.6
train_windows_per_s = 4.0
judge_windows_per_s = 8.0
down_bytes_per_s = 2000.0
up_bytes_per_s = 1000.0
latency_s = 0.5
source = "a test"
[[device]]
name = "slow"
share = 0.4
train_windows_per_s = 0.1
judge_windows_per_s = 8.0
down_bytes_per_s = 2000.0
up_bytes_per_s = 1000.0
latency_s = 0.5
source = "a test"
[faults]
lost_up = 0.05
doubled = 0.2
source = "a test"
"""
FLEET = {"devices": 16, "windows_per_device": 8, "cohort": 8, "quorum": 1, "rounds": 4}
POORLY = {**FLEET, "deadline_s": 60.0, "wait_s": 7200.0, "evaluate_devices": 6}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def start(make_config: MakeConfig, out: Path, **changes: Any) -> dict[str, Any]:
    run = Run(make_config(out=str(out), **changes), ("core",), {}, Engine.cohort)
    return simulate(open_run(run, resume=False), Silent())


@pytest.fixture(scope="module")
def poor(
    make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("poor")
    changes = {**POORLY, "trace": write(folder / "poor.toml", POOR), "target_f1": 0.2}
    return folder / "run", changes, start(make_config, folder / "run", **changes)


def test_devices_that_take_no_time_end_in_the_digest_of_a_run_without_a_trace(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    without = start(make_config, tmp_path / "without", rounds=2)
    trace = write(tmp_path / "fast.toml", FAST)
    found = start(make_config, tmp_path / "with", rounds=2, trace=trace)
    assert found["release"] == without["release"]
    field = found["methods"]["core"]["field"]
    assert (field["hours"], field["reasons"], field["late"]) == (0.0, {}, 0)
    assert "field" not in without["methods"]["core"]
    assert without["trace"] is None


def test_the_report_tells_the_time_and_who_did_not_take_part(
    poor: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    out, _, report = poor
    field = report["methods"]["core"]["field"]
    rounds = RunFolder(out / "core").rounds()
    assert len(rounds) == 4
    assert field["hours"] == pytest.approx(rounds[-1]["closed_at_s"] / 3600, abs=1e-6)
    assert field["seconds_per_round"]["most"] <= 60.0
    # A slow device takes 80 s for eight windows, a round lasts 60.
    assert field["reasons"]["no-reply"] > 0
    assert field["late"] > 0
    assert field["reasons"]["duplicate"] > 0
    assert field["accepted"] == sum(len(each["accepted"]) for each in rounds)
    for each in rounds:
        accounted = {a["device"] for a in each["accepted"]} | {r["device"] for r in each["refused"]}
        assert accounted == set(each["selected"])
    text = (out / "report.md").read_text()
    assert "late for a closed round" in text
    assert "time is simulated" in text
    assert report["trace"]["target_f1"] == 0.2


def test_the_hours_to_a_target_are_those_of_the_first_release_that_reached_it(
    poor: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    out, _, report = poor
    folder = RunFolder(out / "core")
    closed = {0: 0.0} | {each["round"]: each["closed_at_s"] for each in folder.rounds()}
    reached = [e["release"] for e in folder.evaluations() if e["macro_f1"] >= 0.2]
    expected = round(closed[reached[0]] / 3600, 6)
    assert report["methods"]["core"]["field"]["hours_to_target"] == expected


def test_the_same_seed_is_the_same_field_and_another_is_not(
    poor: tuple[Path, dict[str, Any], dict[str, Any]], make_config: MakeConfig, tmp_path: Path
) -> None:
    _, changes, report = poor
    again = start(make_config, tmp_path / "again", **changes)
    assert again["release"] == report["release"]
    assert again["methods"]["core"]["field"] == report["methods"]["core"]["field"]
    other = start(make_config, tmp_path / "other", **changes, seed=1)
    assert other["methods"]["core"]["field"] != report["methods"]["core"]["field"]


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, call: int, *, after: bool) -> None:
    """Let somebody press ctrl-c before or after the ``call``-th call of a run folder's method."""
    whole, calls = getattr(RunFolder, name), [0]

    def cut(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise KeyboardInterrupt
        done = whole(*arguments)
        if calls[0] == call:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(RunFolder, name, cut)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        ("keep_evaluation", 1, True),
        ("answered", 12, True),
        ("publish", 3, False),
        pytest.param("publish", 1, True, marks=pytest.mark.faults),
        pytest.param("keep_evaluation", 2, True, marks=pytest.mark.faults),
        pytest.param("keep_evaluation", 4, False, marks=pytest.mark.faults),
        pytest.param("keep_evaluation", 5, False, marks=pytest.mark.faults),
    ],
)
def test_a_resumed_run_goes_on_in_time_and_ends_like_the_unbroken_one(
    poor: tuple[Path, dict[str, Any], dict[str, Any]],
    make_config: MakeConfig,
    tmp_path: Path,
    name: str,
    call: int,
    after: bool,
) -> None:
    out, changes, report = poor
    trace = write(tmp_path / "poor.toml", POOR)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, name, call, after=after)
        with pytest.raises(KeyboardInterrupt):
            start(make_config, tmp_path / "run", **{**changes, "trace": trace})
    # What counts is the run's own copy.
    write(tmp_path / "poor.toml", FAST)
    wanted = Run(make_config(out=str(tmp_path / "run")), ("core",), {})
    resumed = simulate(open_run(wanted, resume=True), Silent())
    assert resumed["release"] == report["release"]
    for kind in ("rounds", "evaluations"):
        expected = {p.name: read_json(p) for p in (out / "core" / kind).glob("*.json")}
        found = {p.name: read_json(p) for p in (tmp_path / "run" / "core" / kind).glob("*.json")}
        for each in (*expected.values(), *found.values()):
            # Heard in the process that was interrupted, if at all.
            each.pop("late", None)
            each.pop("traffic", None)
        assert found == expected


def test_another_engine_takes_no_trace(make_config: MakeConfig, tmp_path: Path) -> None:
    run = Run(make_config(out=str(tmp_path / "run"), trace="steady"), ("core",), {}, Engine.loop)
    with pytest.raises(InputError) as refused:
        open_run(run, resume=False)
    assert refused.value.code == "trace-engine"
    assert "--engine cohort" in refused.value.hint
    field = Field(parse_trace(trace_text("steady"), "steady"), 0)
    with pytest.raises(InputError):
        make_grid(Engine.loop, {}, 3, 0, field)


@pytest.fixture
def flags(tiny_data: Path, tiny_base_file: Path, tmp_path: Path) -> list[str]:
    text = f"--data {tiny_data} --base {tiny_base_file} --rank 2 --rounds 1 --out {tmp_path}/run"
    return ["simulate", *text.split(), "--methods", "core,local", "--rate", "core=0.05"]


def test_the_command_line_shows_the_field_in_a_table(
    capsys: pytest.CaptureFixture[str], flags: list[str], tmp_path: Path
) -> None:
    more = ["--rate", "local=0.1", "--trace", "steady", "--target-f1", "0.99"]
    assert run_command([*flags, *more]) == 0
    text = capsys.readouterr().out
    for words in ("in the field", "steady", "hours to F1 0.99", "not reached", "3 of 3"):
        assert words in text
    config = read_json(tmp_path / "run" / "run.json")["config"]
    assert config["trace"] == "steady"
    assert RunConfig.parse(config).patience_s == 172_800.0


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--trace", "steady", "--engine", "loop"], "trace-engine"),
        (["--trace", "weekly"], "unknown-trace"),
        (["--trace", "{bad}"], "bad-trace"),
        (["--target-f1", "2"], "run-config"),
    ],
)
def test_a_wrong_trace_is_an_error_with_its_code_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    tmp_path: Path,
    more: list[str],
    code: str,
) -> None:
    bad = write(tmp_path / "bad.toml", 'about = "nothing else"')
    more = [each.replace("{bad}", bad) for each in more]
    assert run_command([*flags, "--rate", "local=0.1", *more, "--format", "json"]) == 4
    assert json.loads(capsys.readouterr().out)["error_code"] == code
    assert not (tmp_path / "run").exists()


def test_an_account_is_known_by_hand() -> None:
    def record(number: int, opened: float, closed: float, *reasons: str) -> dict[str, Any]:
        refused = [{"device": f"d{n}", "reason": r} for n, r in enumerate(reasons)]
        names = ["d0", "d1", "d2"]
        return {
            "round": number,
            "opened_at_s": opened,
            "closed_at_s": closed,
            "selected": names,
            "accepted": names[len(reasons) :],
            "refused": refused,
            "late": [],
        }

    rounds = [record(1, 0, 600, "no-reply", "no-reply"), record(2, 1000, 1800, "failed")]
    tries = [record(2, 700, 900, "no-reply", "declined", "declined")]
    evaluations = [{"release": n, "macro_f1": f1} for n, f1 in ((0, None), (1, 0.4), (2, 0.7))]
    account = account_of(
        rounds, tries, evaluations, 0.6, lambda device, at: (device, at) != ("d1", 600)
    )
    assert account == {
        "seconds_per_round": {"median": 700.0, "least": 600.0, "most": 800.0},
        "hours": 0.5,
        "target_f1": 0.6,
        "hours_to_target": 0.5,
        "asked": 9,
        "accepted": 3,
        "reasons": {"declined": 2, "failed": 1, "no-reply": 3},
        "offline": 1,
        "late": 0,
        "abandoned": 1,
    }
    nothing = account_of([], [], evaluations, 0.9, lambda device, at: True)
    assert (nothing["hours_to_target"], nothing["seconds_per_round"]["median"]) == (None, None)

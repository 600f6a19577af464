from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import load_base
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, InputError
from fleet.federate.releases import load_release
from simulations.continual.run import ScenarioRun, is_scenario_run, open_run, resumed, simulate
from simulations.engines import Engine
from simulations.progress import Silent
from tests.simulations.continual.tiny_run import Killed, Notes, tiny_run, train_tiny_base

MOVES = """
name = "moves"
about = "Two of three devices turn in the middle."
periods = 4
devices = 3
windows_per_period = 12
test_windows_per_period = 8
{more}
[[events]]
kind = "shift"
at = 2
shift = "remount:40"
share = 0.67
"""
GROWS = """
name = "grows"
about = "Two classes appear."
periods = 4
devices = 3
windows_per_period = 16
test_windows_per_period = 12
start_classes = 3
[[events]]
kind = "classes"
at = 2
count = 2
"""

MakeRun = Callable[..., ScenarioRun]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Callable[[str], Path]:
    """A network for the classes at the start of a scenario, trained once a session."""
    held: dict[str, Path] = {}

    def path(text: str) -> Path:
        if text not in held:
            made = tmp_path_factory.mktemp("trained") / "base.safetensors"
            held[text] = train_tiny_base(made, text, tiny_data, epochs=6)
        return held[text]

    return path


@pytest.fixture
def make_run(tmp_path: Path, tiny_data: Path, trained: Callable[[str], Path]) -> MakeRun:
    def make(
        name: str = "run",
        text: str = MOVES,
        *,
        strategies: str = "core",
        more: str = "",
        **named: Any,
    ) -> ScenarioRun:
        text = text.format(more=more) if "{more}" in text else text
        base, names = trained(text).read_bytes(), tuple(strategies.split(","))
        return tiny_run(tmp_path / name, text, tiny_data, base, names, **named)

    return make


def digests(report: dict[str, Any], name: str = "core") -> tuple[str, str]:
    row = report["strategies"][name]
    return row["release"], row["devices_digest"]


def test_a_run_judges_every_period_and_says_what_it_came_to(make_run: MakeRun) -> None:
    report = simulate(open_run(make_run(strategies="frozen,core")), Silent())
    core, frozen = report["strategies"]["core"], report["strategies"]["frozen"]
    assert len(core["f1"]) == len(frozen["f1"]) == 4
    assert frozen["bytes_up"] == 0 < core["bytes_up"]
    assert frozen["release"] != core["release"]
    assert core["f1"][0] == frozen["f1"][0], "before anything is learned both serve the base"
    assert core["labels"] == 4 * 3 * 12
    assert len(core["tasks"]) == len(core["tasks"][0]) == 2, "two tasks, cut at the change"
    assert core["bytes_up"] == 4 * 3 * 4 * core["trained_parameters"]


def test_the_same_seed_ends_in_the_same_digests(make_run: MakeRun) -> None:
    one = simulate(open_run(make_run("one", strategies="core+replay+personal")), Silent())
    two = simulate(open_run(make_run("two", strategies="core+replay+personal")), Silent())
    name = "core+replay+personal"
    assert digests(one, name) == digests(two, name)


@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        ("core+replay+personal", 3),
        pytest.param("core+all", 1, marks=pytest.mark.faults),
        ("local-full", 3),
    ],
)
def test_a_run_that_was_killed_ends_where_an_unbroken_one_does(
    make_run: MakeRun, strategy: str, after: int
) -> None:
    unbroken = simulate(open_run(make_run("one", strategies=strategy)), Silent())
    run = make_run("two", strategies=strategy)
    with pytest.raises(Killed):
        simulate(open_run(run), Notes(after))
    assert is_scenario_run(run.folder)
    report = simulate(resumed(run.folder, 0), Silent())
    assert digests(report, strategy) == digests(unbroken, strategy)
    assert report["strategies"][strategy]["f1"] == unbroken["strategies"][strategy]["f1"]


def test_a_killed_run_goes_on_over_a_change_of_classes(make_run: MakeRun) -> None:
    strategy = "core+replay+personal"
    unbroken = simulate(open_run(make_run("one", GROWS, strategies=strategy)), Silent())
    run = make_run("two", GROWS, strategies=strategy)
    with pytest.raises(Killed):
        simulate(open_run(run), Notes(3))
    assert digests(simulate(resumed(run.folder, 0), Silent()), strategy) == digests(
        unbroken, strategy
    )


def test_private_cores_change_no_bit_of_what_the_fleet_shares(make_run: MakeRun) -> None:
    plain = simulate(open_run(make_run("one", strategies="core+replay")), Silent())
    private = simulate(open_run(make_run("two", strategies="core+replay+personal")), Silent())
    assert digests(plain, "core+replay")[0] == digests(private, "core+replay+personal")[0]


def test_a_joint_sample_is_as_large_as_a_replayed_one_and_another(make_run: MakeRun) -> None:
    from server.store import read_json

    options = {"replay_bytes": 2**20}
    releases = []
    for mix in ("fresh-first", "uniform"):
        run = make_run(mix, options={**options, "replay_mix": mix})
        report = simulate(open_run(run), Silent())
        releases.append(report["strategies"]["core"]["release"])
        rounds = sorted((run.folder / "core" / "base-00" / "rounds").glob("*.json"))
        steps = [each["steps"] for path in rounds for each in read_json(path)["accepted"]]
        assert steps == [2] * 3 + [3] * 9, "12 windows, then 24, in batches of 8"
    assert releases[0] != releases[1]


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("core", {}), ("core+all", {"anchor": 0.5, "ewc": 2.0})],
    ids=["core", "core+all"],
)
def test_both_engines_learn_the_same(
    make_run: MakeRun, strategy: str, options: dict[str, float]
) -> None:
    runs = [
        make_run(engine.value, engine=engine, strategies=strategy, options=options)
        for engine in (Engine.loop, Engine.cohort)
    ]
    one, two = (simulate(open_run(run), Silent())["strategies"][strategy] for run in runs)
    assert one["f1"] == pytest.approx(two["f1"], abs=0.1)
    assert one["bytes_up"] == two["bytes_up"]
    found, wanted = (releases_in(run.folder / strategy) for run in runs)
    assert len(found) == len(wanted) > 1
    for release, other in zip(found, wanted, strict=True):
        # A pooled maximum that rounding gives to its neighbour is the most that they may differ by.
        assert (release - other).norm <= 1e-3 * other.norm


def releases_in(folder: Path) -> list[CoreState]:
    found = sorted(folder.glob("base-*/releases/*.safetensors"))
    states = [load_release(path).state for path in found]
    return [state for state in states if state.norm > 0]


def test_new_classes_grow_the_head_and_old_ones_keep_their_indices(make_run: MakeRun) -> None:
    run = make_run("one", GROWS)
    report = simulate(open_run(run), Silent())
    bases = [load_base(run.folder / "core" / f"base-0{n}" / "base.safetensors") for n in (0, 1)]
    first, second = (base.record.labels for base in bases)
    assert (len(first), len(second)) == (3, 5)
    assert second[:3] == first
    assert report["labels"][:5] == list(second)
    assert bases[0].frame_digest == bases[1].frame_digest
    assert report["strategies"]["core"]["forgetting"][first[0]] is not None


def test_a_rule_that_remembers_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    config = run.config.model_copy(update={"rule": "adam:0.01"})
    with pytest.raises(InputError) as caught:
        open_run(replace(run, config=config))
    assert caught.value.code == "scenario-rule"


def test_a_device_without_labels_sends_nothing(make_run: MakeRun) -> None:
    more = "label_fraction = 0.5\nlabel_delay = 1"
    report = simulate(open_run(make_run("one", more=more)), Silent())
    row = report["strategies"]["core"]
    assert 0 < row["labels"] < 3 * 3 * 12, "half of three periods: the last one's are not known"
    assert row["updates"] <= 3 * 3


def test_devices_that_are_away_serve_what_they_last_heard_of(make_run: MakeRun) -> None:
    from server.store import read_json

    run = make_run("one", more="online = 0.5")
    simulate(open_run(run), Silent())
    periods = sorted((run.folder / "core" / "periods").glob("*.json"))
    last = [read_json(path) for path in periods]
    behind = [
        place[1] < record["release"][1] for record in last for place in record["serving"].values()
    ]
    assert any(behind)
    assert not all(behind)


def test_a_run_is_not_begun_twice_in_one_folder(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(Killed):
        simulate(open_run(run), Notes(1))
    with pytest.raises(InputError) as caught:
        open_run(run)
    assert caught.value.code == "out-in-use"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"strategies": "core,nonsense"}, "unknown-strategy"),
        ({"strategies": "core,core"}, "strategies"),
        ({"options": {"replay_bytes": -1}}, "continual-options"),
        ({"options": {"nonsense": 1}}, "continual-options"),
        ({"rates": {"head": 0.1}}, "strategies"),
        ({"engine": Engine.ray}, "scenario-engine"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(
    make_run: MakeRun, changes: dict[str, Any], code: str
) -> None:
    run = make_run(**changes)
    with pytest.raises(FleetError) as caught:
        open_run(run)
    assert caught.value.code == code
    assert not (run.folder / "run.json").exists()


def test_without_an_alarm_devices_take_part_for_a_while_only(make_run: MakeRun) -> None:
    options = {"trigger": "drift", "trigger_rounds": 2}
    report = simulate(open_run(make_run("one", options=options)), Silent())
    assert report["strategies"]["core"]["updates"] == 2 * 3


def test_by_a_schedule_fewer_rounds_train_on_the_same_labels(make_run: MakeRun) -> None:
    found = {}
    for every in (1, 2):
        run = make_run(f"every-{every}", options={"trigger": "every", "trigger_every": every})
        found[every] = simulate(open_run(run), Silent())["strategies"]["core"]
    assert found[1]["updates"] == 4 * 3
    assert found[2]["updates"] == 2 * 3
    periods = make_run("every-2").folder / "core" / "periods"
    trained = [json.loads(p.read_text())["trained"] for p in sorted(periods.glob("*.json"))]
    assert [bool(each) for each in trained] == [True, False, True, False]
    # The last period's labels wait for the round after it.
    assert found[1]["labels"] == found[2]["labels"] * 4 / 3


WATCHED = """
name = "watched"
about = "A sensor turns after five days."
periods = 7
devices = 1
windows_per_period = 150
test_windows_per_period = 4
[[events]]
kind = "shift"
at = 5
shift = "remount:90"
"""


def test_a_sensor_that_turns_raises_an_alarm_and_calls_for_a_round(make_run: MakeRun) -> None:
    from server.store import read_json

    run = make_run("one", WATCHED, options={"trigger": "drift", "trigger_rounds": 1})
    report = simulate(open_run(run), Silent())
    periods = [read_json(p) for p in sorted((run.folder / "core" / "periods").glob("*.json"))]
    raised = [each["period"] for each in periods if each["alarms"]]
    assert raised
    assert min(raised) >= 5
    assert [each["period"] for each in periods if each["trained"]] == [0, *raised]
    assert report["strategies"]["core"]["updates"] == 1 + len(raised)

"""Periods in which not every device is there, drawn, accepted, or has ever been reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.agent.learner import Workbench
from fleet.adapt.state import CoreState
from fleet.continual.timeline import Arrival, Timeline
from fleet.errors import InputError
from fleet.har.normalise import Normalisation
from server.store import read_json
from simulations.continual.run import ScenarioRun, open_run, resumed, simulate
from simulations.continual.setting import setting_of
from simulations.progress import Silent
from tests.simulations.continual.tiny_run import Killed, Notes, tiny_run, train_tiny_base

THREE = """
name = "three"
about = "Three people; a sensor turns in the middle."
periods = {periods}
devices = 3
windows_per_period = 12
test_windows_per_period = 6
{more}
[[events]]
kind = "shift"
at = 2
shift = "remount:40"
"""
NOBODY_AT_FIRST = '[[events]]\nkind = "join"\nat = 1\nshare = 1.0'

MakeRun = Callable[..., ScenarioRun]
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def base_bytes(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> bytes:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    text = THREE.format(periods=4, more="")
    return train_tiny_base(path, text, tiny_data, epochs=4).read_bytes()


@pytest.fixture
def make_run(tmp_path: Path, tiny_data: Path, base_bytes: bytes) -> MakeRun:
    def make(
        name: str = "run",
        *,
        strategy: str = "core",
        more: str = "",
        periods: int = 4,
        **values: Any,
    ) -> ScenarioRun:
        text = THREE.format(periods=periods, more=more)
        return tiny_run(tmp_path / name, text, tiny_data, base_bytes, (strategy,), values)

    return make


def ran(run: ScenarioRun) -> tuple[dict[str, Any], Records]:
    """Run; return the strategy's row, and the records of its periods."""
    (name,) = run.strategies
    report = simulate(open_run(run), Silent())
    paths = sorted((run.folder / name / "periods").glob("*.json"))
    return report["strategies"][name], [read_json(path) for path in paths]


def learned_by(run: ScenarioRun, period: int) -> set[str]:
    """Return the devices whose updates are in the release of a period's round."""
    folder = run.folder / run.strategies[0] / "base-00" / "rounds"
    rounds = [read_json(path) for path in folder.glob("*.json") if "abandoned" not in path.stem]
    return {
        one["device"] for each in rounds if each["round"] == period + 1 for one in each["accepted"]
    }


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("frozen", "online = 0.25"),
        ("core", "online = 0.25"),
        ("frozen", "online = 1e-9"),
        ("core+replay+personal", NOBODY_AT_FIRST),
    ],
)
def test_a_period_in_which_nobody_can_be_judged_has_no_score_and_the_run_goes_on(
    make_run: MakeRun, more: str, strategy: str
) -> None:
    run, notes = make_run(more=more, strategy=strategy), Notes(stop_after=2)
    with pytest.raises(Killed):
        simulate(open_run(run), notes)
    row = simulate(resumed(run.folder, 0), Silent())["strategies"][strategy]
    assert row["f1"][0] is None
    assert "F1 n/a" in notes.told[0]
    judged = [f1 for f1 in row["f1"] if f1 is not None]
    mean = round(sum(judged) / len(judged), 5) if judged else None
    assert row["average_f1"] == (mean if mean is None else pytest.approx(mean, abs=1e-5))
    assert bool(judged) is (more != "online = 1e-9")


def test_whoever_is_not_drawn_keeps_its_labels_for_the_round_that_it_is_drawn_for(
    make_run: MakeRun,
) -> None:
    run = make_run(cohort=1, periods=6)
    row, records = ran(run)
    last = {f"device-{number:05d}": -1 for number in range(3)}
    for period, record in enumerate(records):
        (name,) = learned_by(run, period)
        assert record["labels"] == 12 * (period - last[name]), "all since it was drawn last"
        assert record["trained"] == 1
        last[name] = period
    assert row["labels"] == 12 * sum(at + 1 for at in last.values())
    assert len({at for at in last.values() if at >= 0}) > 1, "more than one was ever drawn"


@pytest.mark.parametrize("values", [{"cohort": 3}, {"rule": "median"}])
def test_with_too_few_ready_there_is_no_round_and_labels_wait(
    make_run: MakeRun, values: dict[str, Any]
) -> None:
    run = make_run(more="online = 0.75", periods=8, **values)
    row, records = ran(run)
    without = [r for r in records if "no_round" in r]
    assert 0 < len(without) < 8
    assert all((r["trained"], r["labels"], r["traffic"]["bytes_up"]) == (0, 0, 0) for r in without)
    assert "of the 3 devices that a round needs were ready" in without[0]["no_round"]
    last = max(r["period"] for r in records if r["trained"])
    assert row["labels"] == 3 * 12 * (last + 1), "nothing is lost on the way"


def test_an_update_that_is_refused_leaves_its_device_with_its_labels(make_run: MakeRun) -> None:
    """At a rate like this every update is infinite, and none is admitted."""
    run = make_run(learning_rate=100)
    _, records = ran(run)
    assert all(r["traffic"]["messages_down"] == 3 for r in records)
    assert {(r["trained"], r["labels"]) for r in records} == {(0, 0)}
    assert records[-1]["trained_at"] == {}


@pytest.mark.parametrize("values", [{"cohort": 2}, {"rule": "median"}])
def test_devices_that_learn_alone_need_no_cohort(make_run: MakeRun, values: dict[str, Any]) -> None:
    _, plain = ran(make_run("plain", strategy="local-full"))
    row, records = ran(make_run("run", strategy="local-full", **values))
    assert [r["trained"] for r in records] == [3] * 4
    assert row["devices_digest"] == plain[-1]["devices_digest"]


@pytest.mark.parametrize(
    ("values", "code"),
    [({"cohort": 4}, "scenario-cohort"), ({"rule": "krum:1"}, "rule-above-cohort")],
)
def test_a_run_without_a_possible_round_is_refused(
    make_run: MakeRun, values: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        open_run(make_run(**values))
    assert caught.value.code == code
    open_run(make_run("alone", strategy="local-full", **values))


def test_who_never_learns_transfers_nothing_whoever_is_reached_when(make_run: MakeRun) -> None:
    row, records = ran(make_run(strategy="frozen", more="online = 0.5", periods=6))
    assert (row["forward_transfer"], row["backward_transfer"]) == (0.0, 0.0)
    assert row["bytes_down"] == 0, "it came with all that it serves"
    tables = [sum(map(sum, table)) for r in records for table in r.get("tasks", ())]
    assert set(tables) == {3 * 6}, "every device there is judged, reached or not"
    assert len(records[0]["counts"]) < 3, "judged on tasks, but serving nothing yet"


def test_a_release_is_counted_once_for_each_device_that_it_reaches(make_run: MakeRun) -> None:
    row, records = ran(make_run(more="online = 0.6", periods=6))
    size, before, reached = 4 * row["trained_parameters"], dict[str, list[int]](), 0
    for record in records:
        # Those that are there follow twice: the last release, and the one that is made.
        for number, place in record["serving"].items():
            old = before.get(number, [0, 0])
            gone = place[1] - old[1]
            reached += min(gone, 2) if record["trained"] and gone > 1 else bool(gone)
        before = record["serving"]
    assert row["bytes_down"] == size * reached
    trained = sum(r["trained"] for r in records)
    assert reached > trained, "those that did not train got releases too"


def test_a_late_label_makes_no_window_before_it_is_known(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    real = Timeline.arrival

    def spy(self: Timeline, device: int, period: int, normalisation: Normalisation) -> Arrival:
        made.append((device, period))
        return real(self, device, period, normalisation)

    run = make_run(more="label_delay = 5", periods=7)
    setting, (one,) = setting_of(run.config, run.scenario), run.chosen()
    base = setting.base(one, None)
    devices = setting.continual(one, base).devices
    devices.device(0, Workbench(base))
    monkeypatch.setattr(Timeline, "arrival", spy)
    counts = []
    for period in range(7):
        seen = devices.look(0, period)
        devices.close(period, [0] if len(seen.fresh) else [], None, CoreState.of({}))
        counts.append(len(seen.fresh))
    assert counts == [0, 0, 0, 0, 0, 12, 12]
    assert sorted(made) == sorted([(0, p) for p in range(7)] + [(0, 0), (0, 1)])

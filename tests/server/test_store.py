from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import bridge
from fleet.adapt.base import Base
from fleet.errors import MismatchError, StorageError
from fleet.federate.admission import Reason
from fleet.federate.releases import Release, first_release, next_release
from fleet.har.population import Population
from fleet.measure.f1 import macro_f1
from fleet.peft.core import core
from fleet.peft.head import head
from server.app import Surroundings, run_rounds
from server.coordinator import Refusal, RoundRecord
from server.rounds import Traffic
from server.store import RunFolder, read_json
from simulations.inprocess import InProcessGrid
from tests.fleet.federate.factories import LAYOUT, make_base, make_plan
from tests.simulations.tiny_fleet import RATE, MakeConfig

BASE = make_base()


def make_record(number: int, *, released: bool = True) -> RoundRecord:
    return RoundRecord(number, make_plan(round=number), ("a",), (), (), 0.0, 1.0, released)


def make_release(number: int, base: Base = BASE) -> Release:
    release = first_release(base, "core", LAYOUT)
    for _ in range(number):
        release = next_release(release, np.full(LAYOUT.size, 1 << 30, np.int64), {})
    return release


def test_the_last_release_is_that_of_the_last_whole_round(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_release(BASE) is None
    for number in (1, 2):
        folder.publish(make_record(number), make_release(number), Traffic())
    last = folder.last_release(BASE)
    assert last is not None
    assert last.digest == make_release(2).digest
    assert folder.round_numbers() == [1, 2]


def test_a_release_without_a_record_does_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.publish(make_record(1), make_release(1), Traffic())
    folder.publish(make_record(2), make_release(2), Traffic())
    (tmp_path / "rounds" / "000002.json").unlink()
    last = folder.last_release(BASE)
    assert last is not None
    assert last.number == 1


def test_an_abandoned_round_is_kept_and_does_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.publish(make_record(1, released=False), None, Traffic())
    assert folder.round_numbers() == []
    kept = read_json(tmp_path / "rounds" / "000001-abandoned.json")
    assert (kept["round"], kept["release"]) == (1, None)


def test_a_round_is_kept_with_its_plan_traffic_and_release(tmp_path: Path) -> None:
    seen: list[tuple[int, Traffic]] = []
    folder = RunFolder(tmp_path, on_publish=lambda number, traffic: seen.append((number, traffic)))
    traffic = Traffic(1, 2, 3, 4, 5, 6)
    folder.publish(make_record(1), make_release(1), traffic)
    (kept,) = folder.rounds()
    assert kept["plan_id"] == make_plan(round=1).id
    assert kept["release"] == [1, make_release(1).digest]
    assert kept["traffic"]["wire_bytes_up"] == 6
    assert seen == [(1, traffic)]


def test_a_folder_of_another_base_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).publish(make_record(1), make_release(1), Traffic())
    with pytest.raises(MismatchError) as refused:
        RunFolder(tmp_path).last_release(make_base(fill=1.0))
    assert refused.value.code == "other-base"


@pytest.mark.parametrize("content", ["", "{", "[1]", "nonsense", '"x"'])
def test_a_damaged_record_is_told_with_its_path(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.publish(make_record(1), make_release(1), Traffic())
    path = tmp_path / "rounds" / "000001.json"
    path.write_text(content)
    with pytest.raises(StorageError, match=r"000001\.json") as refused:
        folder.rounds()
    assert refused.value.code == "json-damaged"


def test_a_record_that_is_no_text_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError) as refused:
        read_json(path)
    assert refused.value.code == "json-damaged"


def test_an_evaluation_is_kept_with_scores_of_the_fleet_and_of_each_device(tmp_path: Path) -> None:
    scores: list[tuple[int, float]] = []
    folder = RunFolder(tmp_path, on_evaluation=lambda number, f1: scores.append((number, f1)))
    counts = {"b": np.array([[3, 1], [0, 2]]), "a": np.array([[5, 0], [0, 0]])}
    folder.evaluated(make_release(1), counts)
    kept = folder.evaluation(1)
    assert kept is not None
    pooled = macro_f1(counts["a"] + counts["b"])
    assert kept["macro_f1"] == pytest.approx(pooled, abs=1e-6)
    assert kept["digest"] == make_release(1).digest
    assert list(kept["devices"]) == ["a", "b"]
    assert kept["devices"]["a"] == {"macro_f1": 1.0, "confusion": [[5, 0], [0, 0]]}
    assert scores == [(1, pooled)]
    assert folder.evaluation(2) is None


def test_an_evaluation_that_nobody_answered_has_no_scores(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.evaluated(make_release(1), {})
    (kept,) = folder.evaluations()
    assert (kept["macro_f1"], kept["macro_f1_devices_mean"], kept["devices"]) == (None, None, {})


class PowerCut(BaseException):
    """The machine stops at once."""


def cut(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Stop at the ``call``-th file that is written under the name ``name`` of server.store."""
    import server.store

    real: Callable[..., Any] = getattr(server.store, name)
    calls = iter(range(1, 100))

    def stop(*arguments: Any) -> Any:
        if next(calls) == call:
            raise PowerCut
        return real(*arguments)

    monkeypatch.setattr(server.store, name, stop)


@pytest.fixture
def run(
    tiny_base: Base, tiny_people: Population, make_config: MakeConfig
) -> Callable[[RunFolder], Release]:
    def run(folder: RunFolder) -> Release:
        config = make_config(rounds=3)
        grid = InProcessGrid(bridge.app, 3, run_config=config.for_flower())
        around = Surroundings(grid.clock, grid.wait)
        return run_rounds(grid, config, tiny_base, tiny_people, core, RATE, folder, around)

    return run


def contents(folder: Path) -> dict[str, Any]:
    """Return what a run's folder holds, less the times."""
    held: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            held[name] = read_json(path)
            held[name].pop("opened_at_s", None)
            held[name].pop("closed_at_s", None)
        else:
            held[name] = path.read_bytes()
    return held


# Each round writes a release and a record, each evaluation (0 to 3) one file: 3 + 3 + 4 writes.
@pytest.mark.parametrize(
    ("name", "call"),
    [("save_release", n) for n in (1, 2, 3)] + [("write_json", n) for n in range(1, 8)],
)
def test_a_run_that_was_cut_off_at_any_write_goes_on_to_the_same_files(
    run: Callable[[RunFolder], Release],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
) -> None:
    unbroken = RunFolder(tmp_path / "unbroken")
    whole = run(unbroken)
    broken = RunFolder(tmp_path / "broken")
    with monkeypatch.context() as patch:
        cut(broken, patch, name, call)
        with pytest.raises(PowerCut):
            run(broken)
    assert run(broken).digest == whole.digest
    assert contents(broken.folder) == contents(unbroken.folder)


def test_a_finished_run_is_not_run_again(
    run: Callable[[RunFolder], Release], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    first = run(folder)
    answers: list[str] = []
    again = run(RunFolder(tmp_path, on_answer=lambda number, device, of: answers.append(device)))
    assert again.digest == first.digest
    assert answers == []


def test_a_folder_of_another_method_is_refused(
    run: Callable[[RunFolder], Release],
    tmp_path: Path,
    tiny_base: Base,
    tiny_people: Population,
    make_config: MakeConfig,
) -> None:
    folder = RunFolder(tmp_path)
    run(folder)
    config = make_config(rounds=5)
    grid = InProcessGrid(bridge.app, 3, run_config=config.for_flower())
    around = Surroundings(grid.clock, grid.wait)
    with pytest.raises(MismatchError) as refused:
        run_rounds(grid, config, tiny_base, tiny_people, head, RATE, folder, around)
    assert refused.value.code == "other-method"


def test_simulated_time_goes_on_from_the_last_evaluation_or_the_close_of_its_round(
    tmp_path: Path,
) -> None:
    now = [7.25]
    folder = RunFolder(tmp_path, clock=lambda: now[0])
    assert folder.reached_at_s() == 0.0
    folder.publish(make_record(1), make_release(1), Traffic())
    assert folder.reached_at_s() == 1.0
    folder.keep_evaluation(1, "", {})
    assert folder.reached_at_s() == 7.25
    folder.publish(make_record(2), make_release(2), Traffic())
    assert folder.reached_at_s() == 1.0


def test_without_a_simulated_clock_an_evaluation_has_no_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep_evaluation(0, "", {})
    assert "at_s" not in (folder.evaluation(0) or {})


def test_late_answers_are_kept_beside_the_refusals(tmp_path: Path) -> None:
    late = (Refusal("b", Reason.late, "answered round 1, 9 s after it had closed"),)
    folder = RunFolder(tmp_path)
    folder.publish(replace(make_record(1), late=late), make_release(1), Traffic())
    (kept,) = folder.rounds()
    assert (kept["refused"], kept["late"][0]["reason"]) == ([], "late")


def test_the_abandoned_tries_are_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.publish(make_record(1, released=False), None, Traffic())
    folder.publish(make_record(1), make_release(1), Traffic())
    assert [each["round"] for each in folder.abandoned()] == [1]

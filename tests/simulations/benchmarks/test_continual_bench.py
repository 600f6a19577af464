from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fleet.errors import FleetError, InputError, StorageError
from simulations.benchmarks.continual import cell as cell_module
from simulations.benchmarks.continual import run as run_module
from simulations.benchmarks.continual.cell import run_cell
from simulations.benchmarks.continual.estimate import estimate
from simulations.benchmarks.continual.grid import Cell, cells_of, only_of
from simulations.benchmarks.continual.rates import Sweep, climb
from simulations.benchmarks.continual.run import Work, execute, plan, read_cells, read_rates
from simulations.benchmarks.continual.store import Store
from simulations.continual.strategies import STRATEGIES
from simulations.progress import Silent
from tests.simulations.benchmarks.tiny_continual import scenarios_in, tiny_grid
from tests.simulations.inline_workers import Inline

Records = list[dict[str, Any]]


class Told(Silent):
    """Collects how much each stage had to do."""

    def __init__(self, stop_in: str = "") -> None:
        self.stages: dict[str, int] = {}
        self.stop_in = stop_in

    def stage(self, name: str, total: int, note: str = "") -> None:
        self.stages[name] = total

    def advance(self, note: str = "") -> None:
        if self.stop_in in self.stages:
            raise KeyboardInterrupt


def without_times(records: Records) -> Records:
    found = []
    for record in records:
        row = record["row"] and {k: v for k, v in record["row"].items() if k != "cpu_seconds"}
        found.append({k: v for k, v in record.items() if k != "seconds"} | {"row": row})
    return found


def times_of_files(folder: Path) -> dict[Path, int]:
    kept = (p for p in folder.rglob("*.*") if p.name != "bench.json")
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return scenarios_in(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def work(scenarios: dict[str, str], tiny_data: Path) -> Work:
    return plan(tiny_grid(scenarios, tiny_data))


@pytest.fixture(scope="module")
def folder(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the grid has been done, one item after the other."""
    path = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Workers", Inline)
        execute(work, path, 1, Silent())
    return path


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Workers", Inline)


@pytest.fixture
def bases_alone(folder: Path, tmp_path: Path) -> Path:
    """A folder that has the networks of the other, and nothing else."""
    shutil.copytree(folder / "bases", tmp_path / "bench" / "bases")
    return tmp_path / "bench"


def test_bases_rates_and_cells_are_kept_and_runs_are_gone(work: Work, folder: Path) -> None:
    names = {sub: {p.name for p in (folder / sub).iterdir()} for sub in ("rates", "cells", "runs")}
    bases = {p.stem for p in (folder / "bases").glob("*.safetensors")}
    assert bases == set(work.recipes()), "one of the cells, one of the rehearsals"
    assert len(bases) == 2
    (swept,) = [sweep for sweep in work.sweeps if len(sweep.ladder) > 1]
    assert names["rates"] == {f"{swept.key}.json"}
    assert names["cells"] == {f"{cell.key}.json" for cell in work.cells}
    assert names["runs"] == set()
    assert len(list((folder / "rehearsals").iterdir())) == 2


def test_a_record_says_what_was_run_and_what_came_out(work: Work, folder: Path) -> None:
    head, core = read_cells(work, folder)
    assert (head["strategy"], core["strategy"]) == ("fedavg-head", "core")
    for record in (head, core):
        assert (record["refused"], len(record["row"]["f1"])) == ("", 3)
        assert record["row"]["labels"] == 3 * 2 * 8
        assert record["changes"] == [{"period": 1, "text": "remount:40", "devices": 2}]
        assert record["start_classes"] == len(record["labels"])
    assert head["row"]["f1"][0] == core["row"]["f1"][0], "both start from the same base"
    assert 0 < head["row"]["bytes_up"] < core["row"]["bytes_up"]


def test_a_rate_is_the_best_of_its_rehearsals_on_a_seed_of_its_own(
    work: Work, folder: Path
) -> None:
    (swept,) = read_rates(work, folder)
    assert (swept["strategy"], swept["seed"]) == ("core", 1000)
    assert set(swept["scores"]) == {"0.03", "0.1"}
    assert swept["scores"][f"{swept['rate']:g}"] == max(swept["scores"].values())
    head, core = read_cells(work, folder)
    assert (head["rate"], core["rate"]) == (0.1, swept["rate"])


def test_a_second_run_does_nothing_and_returns_the_same(
    work: Work, folder: Path, inline: None
) -> None:
    before, told = times_of_files(folder), Told("none")
    assert execute(work, folder, 1, told) == read_cells(work, folder)
    assert told.stages == {"bases": 0, "rates": 0, "cells": 0}
    assert times_of_files(folder) == before


@pytest.mark.parametrize("stage", ["rates", "cells"])
def test_an_interrupted_run_goes_on_to_the_same_rows(
    work: Work, folder: Path, bases_alone: Path, inline: None, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(work, bases_alone, 1, Told(stage))
    told = Told("none")
    records = execute(work, bases_alone, 1, told)
    assert told.stages == {"bases": 0, "rates": 0, "cells": 2 - (stage == "cells")}
    assert without_times(records) == without_times(read_cells(work, folder))


def test_what_a_killed_cell_left_has_no_say(
    work: Work, folder: Path, bases_alone: Path, inline: None
) -> None:
    execute(work, bases_alone, 1, Silent(), keep=True)
    core = work.cells[1]
    store = Store(bases_alone)
    rate = store.read(store.cell(core))["rate"]
    first = store.run(core, rate) / "core" / "periods" / "000000.json"
    record = json.loads(first.read_text())
    record["counts"] = {name: [[9] * 7] * 7 for name in record["counts"]}
    first.write_text(json.dumps(record))
    store.cell(core).unlink()
    records = execute(work, bases_alone, 1, Silent())
    assert without_times(records) == without_times(read_cells(work, folder))
    assert not store.run(core, rate).exists()
    assert store.run(work.cells[0], 0.1).exists(), "what was to be kept is"


# Workers are processes of some seconds; that they do what this one does is with the slow tests.
@pytest.mark.faults
def test_two_workers_come_to_the_rows_of_one(work: Work, folder: Path, tmp_path: Path) -> None:
    records = execute(work, tmp_path / "two", 2, Silent())
    assert without_times(records) == without_times(read_cells(work, folder))
    assert {p.stem: p.read_bytes() for p in (tmp_path / "two" / "bases").glob("*.safetensors")} == {
        p.stem: p.read_bytes() for p in (folder / "bases").glob("*.safetensors")
    }


def test_rates_alone_need_neither_cells_nor_their_bases(
    work: Work, bases_alone: Path, inline: None
) -> None:
    told = Told("none")
    assert execute(work, bases_alone, 1, told, rates_only=True) == []
    assert told.stages == {"bases": 0, "rates": 1}
    assert len(work.recipes(rates_only=True)) == 1
    assert len(read_rates(work, bases_alone)) == 1


def test_a_cell_that_cannot_be_is_kept_with_its_reason(
    scenarios: dict[str, str], tiny_data: Path, bases_alone: Path, inline: None
) -> None:
    grid = tiny_grid(
        scenarios,
        tiny_data,
        scenarios=[scenarios["lacks"], scenarios["turns"]],
        strategies=["fedavg-head"],
    )
    work = plan(grid)
    lacks, turns = execute(work, bases_alone, 1, Silent())
    assert (lacks["row"], turns["refused"]) == (None, "")
    assert "needs 93 classes" in lacks["refused"]


def test_a_set_that_cannot_have_the_rehearsal_is_refused(
    scenarios: dict[str, str], tiny_data: Path
) -> None:
    with pytest.raises(InputError, match="93 classes") as caught:
        plan(tiny_grid(scenarios, tiny_data, rates={"scenario": scenarios["lacks"]}))
    assert caught.value.code == "no-rehearsal"


def test_a_cell_is_run_again_when_its_rate_has_changed(
    work: Work, folder: Path, bases_alone: Path, inline: None
) -> None:
    shutil.copytree(folder, bases_alone, dirs_exist_ok=True)
    path = Store(bases_alone).cell(work.cells[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rate": 0.5, "row": None}))
    told = Told("none")
    assert without_times(execute(work, bases_alone, 1, told)) == without_times(
        read_cells(work, folder)
    )
    assert told.stages["cells"] == 1


def test_a_folder_with_other_data_of_the_same_name_is_refused(
    work: Work, folder: Path, tmp_path: Path, tiny_data: Path
) -> None:
    record = json.loads((folder / "bench.json").read_text())
    record["data"][str(tiny_data)] = "0" * 64
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="tiny") as caught:
        execute(work, tmp_path, 1, Silent())
    assert caught.value.code == "bench-folder"


def test_a_damaged_result_is_named(work: Work, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bench")
    path = Store(tmp_path / "bench").cell(work.cells[0])
    path.write_text(path.read_text()[:40])
    with pytest.raises(StorageError, match=path.name) as caught:
        read_cells(work, tmp_path / "bench")
    assert caught.value.code == "bench-folder"


def test_an_estimate_counts_what_is_left_at_the_pace_of_what_is_done(
    work: Work, folder: Path, tmp_path: Path
) -> None:
    rows = {row["strategy"]: row for row in estimate(work, tmp_path / "none")}
    windows = 2 * 3 * 16
    assert (rows["fedavg-head"]["cells"], rows["fedavg-head"]["windows"]) == (1, windows)
    assert rows["core"]["windows"] == 3 * windows, "a cell and two rates"
    assert (rows["(bases)"]["cells"], rows["(bases)"]["measured"]) == (2, False)
    assert not (tmp_path / "none").exists()
    done = {row["strategy"]: row for row in estimate(work, folder)}
    assert all((row["cells"], row["seconds"]) == (0, 0.0) for row in done.values())
    assert done["core"]["measured"]
    seconds = read_cells(work, folder)[1]["seconds"]
    assert done["core"]["window_ms"] == pytest.approx(1e3 * seconds / windows, abs=0.001)


def test_only_a_part_is_run(scenarios: dict[str, str], tiny_data: Path) -> None:
    grid = tiny_grid(scenarios, tiny_data, seeds=[0, 1, 2])
    only = only_of(["strategy=core,seed=0", "seed=2"], grid)
    assert [(c.strategy, c.seed) for c in cells_of(grid, only)] == [("core", 0), ("core", 2)]
    assert len(cells_of(grid)) == 6


@pytest.mark.parametrize("text", ["seed=7", "colour=red", "core", "strategy="])
def test_a_part_that_the_grid_has_not_is_refused(
    scenarios: dict[str, str], tiny_data: Path, text: str
) -> None:
    with pytest.raises(InputError) as caught:
        only_of([text], tiny_grid(scenarios, tiny_data))
    assert caught.value.code == "bad-only"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seeds": [0, 1000]}, "grid-invalid"),
        ({"seeds": [0, 0]}, "grid-invalid"),
        ({"strategies": ["magic"]}, "grid-invalid"),
        ({"training": {"magic": {}}}, "grid-invalid"),
        ({"training": {"core": {"rates": [0]}}}, "grid-invalid"),
        ({"colour": "red"}, "grid-invalid"),
        ({"scenarios": ["nowhere"]}, "no-such-scenario"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(
    scenarios: dict[str, str], tiny_data: Path, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(FleetError) as caught:
        tiny_grid(scenarios, tiny_data, **changes)
    assert caught.value.code == code


def test_a_cell_is_another_when_anything_that_it_is_changes(
    scenarios: dict[str, str], tiny_data: Path
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"epochs": 2},
        {"rank": 3},
        {"base_epochs": 2},
        {"training": {"core": {"batch": 16}}},
    ]
    grids = [tiny_grid(scenarios, tiny_data, strategies=["core"], **each) for each in changes]
    keys = {cell.key for grid in grids for cell in cells_of(grid)}
    assert len(keys) == len(changes)


@pytest.mark.parametrize(
    ("best", "start", "tried"),
    [(0.1, 0.1, 3), (0.01, 0.1, 4), (1.0, 0.1, 4), (0.01, 0.01, 2)],
)
def test_a_climb_ends_where_both_neighbours_are_worse(
    work: Work, best: float, start: float, tried: int
) -> None:
    ladder = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)[1:]
    choice = climb(Sweep(work.cells[0], ladder, start), lambda rate: -abs(rate - best))
    assert (choice.rate, len(choice.scores)) == (best, tried)
    assert choice.on_edge == (best in (0.01, 1.0))


def test_a_rate_that_breaks_is_never_chosen(work: Work) -> None:
    scores = {0.01: 0.2, 0.1: float("nan"), 1.0: float("nan")}
    choice = climb(Sweep(work.cells[0], (0.01, 0.1, 1.0), 0.1), scores.__getitem__)
    assert choice.rate == 0.01


def test_the_shipped_grid_is_the_published_one() -> None:
    from simulations.benchmarks.continual.grid import grid_of, read_grid
    from simulations.cli.bench_continual import GRID

    grid = grid_of(read_grid(GRID), "the shipped one")
    assert len(cells_of(grid)) == 5 * 4 * 13 * 3
    assert grid.ladder("fedprox-full")[0] == 0.0003
    assert grid.ladder("core+all") == (0.01, 0.03, 0.1, 0.3, 1.0)


def test_a_cell_is_another_when_what_its_strategy_does_has_changed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, before = work.cells[1], work.cells[1].key
    one = STRATEGIES["core"]
    monkeypatch.setitem(STRATEGIES, "core", replace(one, summary="in other words"))
    assert core.key == before
    options = one.options.model_copy(update={"anchor": 0.5})
    for other in (replace(one, shares=False), replace(one, options=options)):
        monkeypatch.setitem(STRATEGIES, "core", other)
        assert core.key != before


@pytest.mark.parametrize(("broken", "rate"), [((), 0.03), ((0.03,), 0.1)])
def test_rates_are_chosen_by_f1_over_time_and_never_where_training_broke(
    work: Work,
    bases_alone: Path,
    inline: None,
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[float, ...],
    rate: float,
) -> None:
    def faked(cell: Cell, recipe: object, rate: float, store: Store) -> dict[str, Any]:
        row = None if rate in broken else {"average_f1": 1 - rate, "last_f1": rate}
        return cell.model_dump() | {"rate": rate, "refused": "", "seconds": 0.0, "row": row}

    monkeypatch.setattr(run_module, "run_cell", faked)
    execute(work, bases_alone, 1, Silent(), rates_only=True)
    (found,) = read_rates(work, bases_alone)
    assert found["rate"] == rate
    assert [r for r, score in found["scores"].items() if score is None] == [f"{b}" for b in broken]


@pytest.mark.parametrize("error", [ValueError("NaN is no number"), ZeroDivisionError("by zero")])
def test_a_cell_whose_numbers_break_is_refused_and_leaves_no_folder(
    work: Work, bases_alone: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def breaks(*args: Any) -> None:
        raise error

    monkeypatch.setattr(cell_module, "run_periods", breaks)
    store, cell = Store(bases_alone), work.cells[0]
    record = run_cell(cell, work.recipe(cell), 0.1, store)
    assert record["refused"] == f"{type(error).__name__}: {error}"
    assert (record["row"], record["rate"]) == (None, 0.1)
    assert not store.run(cell, 0.1).exists()


def test_cells_that_ran_here_leave_the_process_its_small_numbers(folder: Path) -> None:
    assert list((folder / "cells").iterdir())
    assert float(torch.tensor(1e-40) * 0.5) > 0

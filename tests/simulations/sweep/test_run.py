from __future__ import annotations

import multiprocessing
import signal
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import InputError
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.sweep.cells import Cell, cells_of, fingerprints
from simulations.sweep.recipe import Recipe
from simulations.sweep.run import PRELOAD, execute
from simulations.sweep.store import Kept, Store
from simulations.sweep.worker import CellJob, cell_folder, do

LONG = 8


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int, note: str = "") -> None:
        self.notes.append(f"{name} {total}")


def sweep_of(data: Path) -> list[Cell]:
    """A short cell, a long one, and two that no layer allows."""
    run = {
        "data": str(data),
        "base-epochs": 1,
        "batch": 16,
        "learning-rate": 0.05,
        "evaluate-every": 4,
    }
    axes = {"rank": (2, 100_000), "rounds": (1, LONG)}
    return cells_of(Recipe("test", "Test", run, axes), Engine.cohort, fingerprints())


def run_in(folder: Path, cells: list[Cell], jobs: int) -> tuple[list[Kept], list[str]]:
    store, notes = Store(folder, writable=True), Notes()
    store.add(cells, "Test", ["rank", "rounds"])
    return execute(store, folder, cells, jobs, notes), notes.notes


def outcome(kept: list[Kept]) -> list[Any]:
    """Return what must not depend on the clock."""
    return [
        (each.cell.id, each.state, each.failure, [asdict(r) | {"seconds": 0} for r in each.results])
        for each in kept
    ]


@pytest.fixture(scope="module")
def whole(
    tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Kept], list[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder, *run_in(folder, sweep_of(tiny_data), jobs=1)


def test_a_failing_cell_is_kept_with_its_error_and_the_others_go_on(
    whole: tuple[Path, list[Kept], list[str]],
) -> None:
    _, kept, notes = whole
    assert notes == ["bases 1", "cells 4"]
    assert [each.state for each in kept] == ["done", "done", "failed", "failed"]
    failure = kept[2].failure
    assert failure is not None
    assert failure.code == "rank-too-large"
    short, long = kept[0].results[0], kept[1].results[0]
    assert [p.round for p in long.rounds] == list(range(LONG + 1))
    assert long.digest == long.rounds[-1].digest != short.digest == long.rounds[1].digest
    assert long.rounds[0].macro_f1 is not None
    assert short.rounds[1].bytes_up == 3 * short.bytes_up > 0


def test_what_is_done_is_not_done_again(
    whole: tuple[Path, list[Kept], list[str]], tiny_data: Path
) -> None:
    folder, kept, _ = whole
    again, notes = run_in(folder, sweep_of(tiny_data), jobs=1)
    assert again == kept  # the seconds as well
    assert notes == ["cells 0"]


def test_failed_cells_run_again_when_they_are_queued_again(
    whole: tuple[Path, list[Kept], list[str]], tiny_data: Path
) -> None:
    folder, kept, _ = whole
    Store(folder, writable=True).requeue("failed", sweep_of(tiny_data))
    again, notes = run_in(folder, sweep_of(tiny_data), jobs=1)
    assert notes == ["cells 2"]
    assert outcome(again) == outcome(kept)


def test_what_was_queued_for_an_engine_that_no_sweep_has_is_refused_before_any_cell(
    tiny_data: Path, tmp_path: Path
) -> None:
    first, second = sweep_of(tiny_data)[:2]
    cells, notes = [first, replace(second, engine=Engine.ray)], Notes()
    store = Store(tmp_path, writable=True)
    store.add(cells, "Test", [])
    with pytest.raises(InputError, match="not ray") as caught:
        execute(store, tmp_path, cells, 1, notes)
    assert caught.value.code == "sweep-engine"
    assert (notes.notes, [each.state for each in store.kept()]) == ([], ["queued"] * 2)


class Telling(Silent):
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def advance(self, note: str = "") -> None:
        if "F1" in note:
            self.pipe.send("one is done")


def sweep_apart(data: Path, folder: Path, pipe: Connection) -> None:
    """What the process does that is going to be killed."""
    cells, store = sweep_of(data), Store(folder, writable=True)
    store.add(cells, "Test", ["rank", "rounds"])
    execute(store, folder, cells, 2, Telling(pipe))


def test_a_sweep_killed_half_way_goes_on_and_ends_in_the_same_results_on_more_processes(
    whole: tuple[Path, list[Kept], list[str]], tiny_data: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    ours, theirs = context.Pipe()
    sweep = context.Process(target=sweep_apart, args=(tiny_data, tmp_path, theirs))
    sweep.start()
    theirs.close()
    told = ours.recv()
    sweep.kill()
    sweep.join()
    ours.close()
    assert (told, sweep.exitcode) == ("one is done", -signal.SIGKILL)
    before = [each.state for each in Store(tmp_path, writable=False).kept()]
    assert "done" in before
    assert "running" in before or "queued" in before
    kept, _ = run_in(tmp_path, sweep_of(tiny_data), jobs=2)
    assert outcome(kept) == outcome(whole[1])


def test_a_bug_in_a_cell_is_kept_with_its_traceback(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("half of it is missing")

    monkeypatch.setattr("simulations.sweep.worker.simulate", broken)
    cell = sweep_of(tiny_data)[0]
    failure = do(CellJob(tmp_path, cell)).failure
    assert failure is not None
    assert (failure.code, "half of it is missing" in failure.message) == ("bug", True)
    trace = cell_folder(tmp_path, cell) / "traceback.txt"
    assert str(trace) in failure.hint
    assert "in broken" in trace.read_text()

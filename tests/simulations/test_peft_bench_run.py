from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleet.errors import InputError, StorageError
from simulations.benchmarks.peft import cell as cells_module
from simulations.benchmarks.peft import run as run_module
from simulations.benchmarks.peft.bases import Bases
from simulations.benchmarks.peft.cell import adapt
from simulations.benchmarks.peft.grid import Grid, grid_of
from simulations.benchmarks.peft.people import data_of
from simulations.benchmarks.peft.run import Work, estimate, execute, plan, read_cells, read_rates
from simulations.progress import Silent
from tests.simulations.inline_workers import Inline

METHODS = ("core", "full", "head")
ISSUE = {
    "data",
    "model",
    "method",
    "frame",
    "rank",
    "split",
    "seed",
    "fold",
    "macro_f1",
    "trained_parameters",
    "total_parameters",
    "bytes",
}
Records = list[dict[str, Any]]


class Told:
    """Collects how much each stage had to do."""

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}

    def stage(self, name: str, total: int, note: str = "") -> None:
        self.stages[name] = total

    def advance(self, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def grid(*, source_windows: int = 64, data: str = "synthetic", **part: Any) -> Grid:
    block = {"data": [data], "methods": METHODS, "folds": 1, "seeds": 1, "steps": [4], **part}
    content = {"parts": [block], "source_windows": source_windows, "epochs": 1, "players": 1}
    return grid_of(content, "a test")


def without_times(records: Records) -> Records:
    return [{k: v for k, v in r.items() if k != "train_seconds"} for r in records]


@pytest.fixture(scope="module")
def work() -> Work:
    return plan(grid())


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


def test_bases_rates_and_cells_are_kept_as_files(work: Work, folder: Path) -> None:
    names = {sub: {p.name for p in (folder / sub).iterdir()} for sub in ("bases", "rates", "cells")}
    assert names["bases"] == {f"{recipe.key}.safetensors" for recipe in work.recipes}
    assert names["rates"] == {f"{sweep.key}.json" for sweep in work.sweeps}
    assert names["cells"] == {f"{cell.key}.json" for cell in work.cells}
    assert (len(work.recipes), len(work.sweeps), len(work.cells)) == (2, 3, 3)
    made_with = json.loads((folder / "bench.json").read_text())
    assert made_with["bases"] == {"source_windows": 64, "epochs": 1, "players": 1}
    assert set(made_with["data"]) == {"synthetic"}


def test_a_record_says_what_was_run_and_what_came_out(work: Work, folder: Path) -> None:
    records = read_cells(work, folder)
    assert [r["method"] for r in records] == list(METHODS)
    for r in records:
        assert set(r) >= ISSUE
        assert 0 <= r["macro_f1"] <= 1
        assert [step for step, _ in r["curve"]] == [0, 4]
        assert r["curve"][-1][1] == r["macro_f1"]
        assert (r["refused"], r["merges"]) == ("", True)
        assert r["train_seconds"] > 0
    # All start from the same base on the same windows.
    assert len({r["curve"][0][1] for r in records}) == 1
    by_method = {r["method"]: r for r in records}
    assert by_method["core"]["trained_parameters"] == 2 * (64 + 128 + 128)
    assert by_method["head"]["bytes"] == 4 * (128 * 7 + 7)
    assert by_method["full"]["total_parameters"] == 126_343


def test_a_rate_is_the_best_of_its_sweep_and_the_cell_s(work: Work, folder: Path) -> None:
    rates = {r["variant"]["method"]: r for r in read_rates(work, folder)}
    for record in read_cells(work, folder):
        sweep = rates[record["method"]]
        assert record["rate"] == sweep["rate"]
        scores = sweep["scores"]
        assert scores[f"{sweep['rate']:g}"] == max(s for s in scores.values() if s is not None)


def test_a_second_run_does_nothing_and_returns_the_same(work: Work, folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name != "bench.json"}
    told = Told()
    assert execute(work, folder, 1, told) == read_cells(work, folder)
    assert told.stages == {"bases": 0, "rates": 0, "cells": 0}
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name != "bench.json"}
    assert after == before


def test_a_cell_that_is_gone_is_run_again_alone_and_comes_out_the_same(
    work: Work, folder: Path, inline: None
) -> None:
    before = read_cells(work, folder)
    (folder / "cells" / f"{work.cells[1].key}.json").unlink()
    told = Told()
    after = execute(work, folder, 1, told)
    assert told.stages == {"bases": 0, "rates": 0, "cells": 1}
    assert without_times(after) == without_times(before)


def test_a_cell_is_run_again_when_its_rate_has_changed(
    work: Work, folder: Path, inline: None
) -> None:
    """A grid with one more data set sweeps anew, and may choose another rate for all of them."""
    before = read_cells(work, folder)
    path = folder / "cells" / f"{work.cells[2].key}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rate": 0.5, "macro_f1": 0.0}))
    told = Told()
    assert without_times(execute(work, folder, 1, told)) == without_times(before)
    assert told.stages["cells"] == 1


def test_a_damaged_result_is_named(work: Work, folder: Path) -> None:
    path = folder / "cells" / f"{work.cells[0].key}.json"
    content = path.read_text()
    path.write_text(content[:40])
    with pytest.raises(StorageError, match=path.name) as caught:
        execute(work, folder, 1, Silent())
    assert caught.value.code == "bench-folder"
    path.write_text(content)


@pytest.mark.parametrize("run", [execute, lambda work, folder, *_: estimate(work, folder)])
def test_a_folder_with_other_bases_is_refused(run: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="bases") as caught:
        run(plan(grid(source_windows=128)), folder, 1, Silent())
    assert caught.value.code == "bench-folder"


def test_a_folder_with_other_data_of_the_same_name_is_refused(
    work: Work, folder: Path, tmp_path: Path
) -> None:
    record = json.loads((folder / "bench.json").read_text())
    record["data"]["synthetic"] = "0" * 64
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="synthetic") as caught:
        execute(work, tmp_path, 1, Silent())
    assert caught.value.code == "bench-folder"


def test_a_method_that_cannot_is_a_record_with_its_reason(tmp_path: Path, inline: None) -> None:
    work = plan(grid(models=["calanet"], methods=["lora"], ranks=[2]))
    (record,) = execute(work, tmp_path, 1, Silent())
    assert record["macro_f1"] is None
    assert "groups" in record["refused"]
    assert (record["trained_parameters"], record["bytes"], record["curve"]) == (0, 0, [])


def test_all_methods_see_the_same_batches_in_the_same_order(
    work: Work, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []
    real = cells_module._order

    def spy(*arguments: Any) -> Iterator[Any]:
        seen.append([])
        for index in real(*arguments):
            seen[-1].append(index.tolist())
            yield index

    monkeypatch.setattr(cells_module, "_order", spy)
    bases = Bases(folder / "bases")
    for cell in work.cells:
        adapt(cell, bases, work.recipe(cell), 1e-3)
    assert seen[0] == seen[1] == seen[2]
    assert [len(index) for index in seen[0]] == [64] * 4
    other = work.cells[0].model_copy(update={"seed": 1})
    adapt(other, bases, work.recipe(other), 1e-3)
    assert seen[3] != seen[0]


def test_batches_are_full_and_a_pass_shows_no_window_twice() -> None:
    order = cells_module._order(10, 4, np.random.default_rng(0))
    drawn = [next(order) for _ in range(4)]
    assert all(len(index) == 4 for index in drawn)
    assert len(set(np.concatenate(drawn[:2]).tolist())) == 8
    few = cells_module._order(3, 4, np.random.default_rng(0))
    assert sorted(next(few)) == [0, 1, 2]


class Interrupting(Told):
    """Presses Ctrl-C after the first rate."""

    def advance(self, note: str = "") -> None:
        if "rates" in self.stages:
            raise KeyboardInterrupt


# Workers are processes of some seconds; that they do what this one does is with the slow tests.
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_an_interrupted_run_goes_on_to_what_one_process_came_to(
    work: Work, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Workers", Inline)
        with pytest.raises(KeyboardInterrupt):
            execute(work, tmp_path, 1, Interrupting())
    if workers == 1:
        monkeypatch.setattr(run_module, "Workers", Inline)
    told = Told()
    records = execute(work, tmp_path, workers, told)
    assert told.stages == {"bases": 0, "rates": 2, "cells": 3}
    assert without_times(records) == without_times(read_cells(work, folder))
    assert read_rates(work, tmp_path) == read_rates(work, folder)


def test_an_estimate_counts_what_is_left_and_times_one_step(
    work: Work, folder: Path, tmp_path: Path
) -> None:
    assert estimate(work, folder) == []
    rows = estimate(work, tmp_path)
    assert [(r["method"], r["cells"]) for r in rows] == [(name, 1) for name in METHODS]
    # One cell, and four rates for one player.
    assert all(r["steps"] == 4 + 4 * 4 for r in rows)
    assert all(r["seconds"] == r["steps"] * r["step_seconds"] > 0 for r in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data": "nowhere"}, "data-unknown"),
        ({"methods": ["core", "magic"]}, "unknown-method"),
        ({"models": ["small-cnn", "vgg"]}, "unknown-model"),
        ({"frames": ["qr"]}, "unknown-frame"),
        ({"shifts": ["none", "warp:3"]}, "bad-shift"),
        ({"unseen": 6}, "bad-class-count"),
    ],
)
def test_what_cannot_be_run_is_found_while_planning(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(grid(**changes))
    assert caught.value.code == code


def test_a_shift_that_a_set_cannot_have_is_found_while_planning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.simulations.test_peft_bench_people import made_up

    one_axis = made_up(6)
    real = data_of
    monkeypatch.setattr(
        run_module, "data_of", lambda name, *a: (one_axis, 2) if name == "axis" else real(name, *a)
    )
    with pytest.raises(InputError, match="three") as caught:
        plan(grid(data="axis", shifts=["remount:35"]))
    assert caught.value.code == "no-triples"


def test_the_base_is_the_same_in_every_process(work: Work, folder: Path, tmp_path: Path) -> None:
    recipe = work.recipes[0]
    torch.manual_seed(5)  # the global random state has no say
    again = Bases(tmp_path)
    again.train(recipe)
    assert again.path(recipe).read_bytes() == Bases(folder / "bases").path(recipe).read_bytes()

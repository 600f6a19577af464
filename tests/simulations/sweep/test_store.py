from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleet.errors import InputError, StorageError
from simulations.sweep.run import alone
from simulations.sweep.store import FILE, Failure, Store
from tests.simulations.sweep.made import cells, kept_sweep, result


def test_what_is_kept_is_read_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path, writable=True)
    one, two, three = cells(rank=(1, 2, 3))
    store.add([one, two, three], "Title", ["rank"])
    results = (result(0.8), result(0.7, method="head", rounds=1))
    store.started(two.id)
    store.done(one.id, results, 2.5)
    store.failed(three.id, Failure("bad", "no", "other"))
    read = Store(tmp_path, writable=False)
    assert read.about() == ("Title", ("rank",))
    kept = read.kept()
    assert [(k.cell, k.state) for k in kept] == [(one, "done"), (two, "running"), (three, "failed")]
    assert (kept[0].results, kept[0].seconds) == (results, 2.5)
    assert kept[2].failure == Failure("bad", "no", "other")


def test_a_larger_recipe_adds_what_is_new_and_keeps_what_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path, writable=True)
    small = cells(rank=(1, 2))
    store.add(small, "a", ["rank"])
    store.done(small[0].id, [result(0.8)], 1.0)
    store.add(cells(rank=(3, 2, 1)), "b", ["rank"])
    assert [(k.cell.config.rank, k.state) for k in store.kept()] == [
        (1, "done"),
        (2, "queued"),
        (3, "queued"),
    ]


def test_cells_are_queued_again_by_their_state(tmp_path: Path) -> None:
    store = kept_sweep(tmp_path)
    store.requeue("failed", [k.cell for k in store.kept()][:5])
    assert [k.state for k in store.kept()] == ["done"] * 4 + ["queued", "failed"]


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    kept_sweep(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("UPDATE sweep SET format = 'corefleet.sweep.99'")
        connection.commit()
    for writable in (False, True):
        with pytest.raises(StorageError, match=r"corefleet\.sweep\.99") as caught:
            Store(tmp_path, writable=writable)
        assert caught.value.code == "sweep-format"


@pytest.mark.parametrize("content", [b"no database at all", b""])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Store(tmp_path, writable=False)
    assert caught.value.code == "sweep-damaged"


def test_a_folder_without_a_sweep_is_not_made_into_one_by_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Store(tmp_path / "none", writable=False)
    assert caught.value.code == "no-sweep"
    assert not (tmp_path / "none").exists()


def test_one_process_at_a_time_runs_a_sweep(tmp_path: Path) -> None:
    with alone(tmp_path):
        with pytest.raises(InputError) as caught, alone(tmp_path):
            pass
        assert caught.value.code == "sweep-busy"
    with alone(tmp_path):
        pass

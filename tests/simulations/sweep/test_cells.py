from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fleet.adapt.base import load_base
from fleet.config import RunConfig
from fleet.errors import InputError
from fleet.har.population import population_of
from server.prepare import obtain_base
from simulations.engines import Engine
from simulations.sweep.cells import cells_of, fingerprints
from simulations.sweep.worker import BaseJob, base_path, do
from simulations.traces import trace
from simulations.traces.trace import trace_text
from tests.simulations.sweep.made import PRINTS, cells, recipe


def ids(**axes: tuple[bool | int | float | str, ...]) -> list[str]:
    return [cell.id for cell in cells(**axes)]


def test_cells_are_the_product_of_the_axes_the_first_one_slowest() -> None:
    made = cells(rank=(1, 2), seed=(0, 1))
    assert [(c.config.rank, c.config.seed) for c in made] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len({cell.id for cell in made}) == 4


def test_an_id_does_not_depend_on_the_order_or_spelling_of_what_it_is_made_of() -> None:
    assert set(ids(rank=(1, 2), seed=(0, 1))) == set(ids(seed=("1", "0"), rank=(2, 1)))
    run = {"batch": 16, "data": "synthetic", "rounds": 3}
    backwards = dict(reversed(run.items()))
    one, other = (
        cells_of(recipe(values, rank=(2,)), Engine.cohort, PRINTS) for values in (run, backwards)
    )
    assert one == other
    assert ids(memory_budget=("1kB",)) == ids(memory_budget=(1000,))


def test_an_id_does_not_depend_on_the_folder_but_on_all_that_decides() -> None:
    plain = ids(rank=(4,))
    assert ids(rank=(4,), shift=("remount:35",)) == plain  # the default, said aloud
    assert ids(rank=(4,), out=("elsewhere",)) == plain
    for changed in (
        ids(rank=(4,), seed=(1,)),
        ids(rank=(4,), method=("head",)),
        ids(rank=(4,), method=("core,head",)),
        ids(rank=(4,), base=("a",)),
        [cells_of(recipe(rank=(4,)), Engine.loop, PRINTS)[0].id],
    ):
        assert changed != plain


def test_the_data_s_content_counts_and_not_its_path() -> None:
    moved = replace(PRINTS, data=lambda name: (f"/moved/{name}", f"digest of {name}"))
    changed = replace(PRINTS, data=lambda name: (name, "another digest"))
    made = [cells_of(recipe(rank=(4,)), Engine.cohort, p)[0] for p in (PRINTS, moved, changed)]
    assert made[0].id == made[1].id != made[2].id
    assert made[1].config.data == "/moved/synthetic"


def test_equal_cells_are_run_once() -> None:
    assert len(cells(rank=(1, "1", 2))) == 2
    assert len(cells(method=("core", "core, core"))) == 1


def test_cells_share_a_base_over_all_that_does_not_enter_it() -> None:
    shared = cells(rank=(1, 2), learning_rate=(0.1, 0.2), frame=("svd", "tt"), rounds=(1, 2))
    assert len({cell.base_key for cell in shared}) == 1
    apart = cells(seed=(0, 1), model=("small-cnn", "t-resnet"))
    assert len({cell.base_key for cell in apart}) == 4
    assert {cell.base_key for cell in cells(base=("file",))} == {""}


def test_paths_are_made_absolute_and_names_are_left(
    tiny_data: Path, tiny_base_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_data.parent)
    real = fingerprints()
    here = tiny_data.parent.resolve()
    assert real.data("tiny.npz")[0] == str(here / "tiny.npz")
    assert real.data("tiny")[0] == str(here / "tiny.npz")
    assert real.data("tiny.npz")[1] == real.data("tiny")[1] != real.data("synthetic")[1]
    assert real.data("synthetic")[0] == "synthetic"
    assert real.base(tiny_base_file.name) == (
        str(tiny_base_file.resolve()),
        load_base(tiny_base_file).digest,
    )


def test_a_trace_counts_by_its_content_and_the_package_s_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    shipped = trace_text("steady")
    Path("mine.toml").write_text(shipped)
    Path("steady").write_text(trace_text("nightly"))
    # As simulations.traces reads them: a file beside does not change what a name stands for.
    assert fingerprints().trace("steady") == ("steady", sha256(shipped.encode()).hexdigest())
    assert fingerprints().trace("mine.toml") == (
        str(here / "mine.toml"),
        fingerprints().trace("steady")[1],
    )
    assert fingerprints().trace("./steady") == (
        str(here / "steady"),
        fingerprints().trace("nightly")[1],
    )
    monkeypatch.setattr(trace, "_shipped", lambda: here / "later")
    Path("later").mkdir()
    Path("later/steady.toml").write_text(trace_text("mine.toml").replace("about =", "about  ="))
    assert fingerprints().trace("steady")[0] == "steady"
    assert fingerprints().trace("steady")[1] != sha256(shipped.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "error"), [("commute", "unknown-trace"), ("broken.toml", "bad-trace")]
)
def test_a_trace_that_cannot_be_used_is_refused_with_the_recipe(
    name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("about = 1\n")
    with pytest.raises(InputError) as caught:
        cells_of(recipe(trace=(name,)), Engine.cohort, replace(PRINTS, trace=fingerprints().trace))
    assert caught.value.code == error


@pytest.mark.parametrize("engine", [Engine.ray, Engine.ray_cohort])
def test_engines_with_processes_of_their_own_are_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="cohort or loop, not ray") as caught:
        cells_of(recipe(rank=(1,)), engine, PRINTS)
    assert caught.value.code == "sweep-engine"
    assert f"fleet simulate --engine {engine.value}" in caught.value.hint


def test_one_cell_that_its_engine_cannot_run_refuses_the_recipe() -> None:
    with pytest.raises(InputError, match="a trace needs one, not loop") as caught:
        cells_of(recipe(trace=("", "steady")), Engine.loop, PRINTS)
    assert caught.value.code == "trace-engine"


def test_a_shared_base_is_bit_for_bit_the_one_that_a_cell_would_train(
    tiny_data: Path, tmp_path: Path
) -> None:
    run = {"data": str(tiny_data), "frame": "random", "rank": 3, "base-epochs": 1, "seed": 1}
    (cell,) = cells_of(recipe(run), Engine.cohort, PRINTS)
    assert do(BaseJob(tmp_path, cell)).failure is None
    config: RunConfig = cell.config
    population = population_of(config)
    from_shared = config.model_copy(update={"base": str(base_path(tmp_path, cell))})
    assert obtain_base(from_shared, population).digest == obtain_base(config, population).digest

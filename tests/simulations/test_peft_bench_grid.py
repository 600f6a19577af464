from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.errors import InputError
from fleet.peft.tuners import ALL, TUNERS
from simulations.benchmarks.peft.grid import (
    Cell,
    Grid,
    Part,
    cells_of,
    check_names,
    grid_of,
    headings_of,
    read_grid,
)

EXPERIMENTS = sorted((Path(__file__).parents[2] / "simulations" / "experiments").glob("peft*.toml"))
PEOPLE = {"one": (7, 3, 5, 1), "two": (2, 9, 4, 8)}


def grid(*parts: dict[str, Any]) -> Grid:
    return grid_of({"parts": [{"data": ["one"], **part} for part in parts]}, "a test")


def cells(*parts: dict[str, Any]) -> list[Cell]:
    return cells_of(grid(*parts), PEOPLE)


def test_only_methods_with_a_frame_or_a_rank_are_repeated_for_each() -> None:
    found = cells(
        {
            "methods": ["core", "lora", "head"],
            "frames": ["svd", "tt"],
            "ranks": [1, 2, 4],
            "scales": ["response", "none"],
            "folds": 1,
            "seeds": 1,
        }
    )
    count = {name: sum(c.method == name for c in found) for name in ("core", "lora", "head")}
    assert count == {"core": 2 * 3 * 2, "lora": 3, "head": 1}
    assert {(c.frame, c.rank, c.scale) for c in found if c.method == "head"} == {
        ("-", 0, "response")
    }
    assert {c.frame for c in found if c.method == "lora"} == {"-"}


def test_a_cell_that_two_parts_share_is_run_once_under_the_first_heading() -> None:
    found = cells(
        {"setting": "main", "methods": ["head", "full"]},
        {"setting": "more", "methods": ["full", "bias"]},
    )
    assert [c.setting for c in found if c.method == "full"] == ["main"] * 6
    assert {c.method for c in found if c.setting == "more"} == {"bias"}
    assert len({c.key for c in found}) == len(found)


def test_the_heading_is_no_part_of_a_cell_s_key_and_everything_else_is() -> None:
    cell = Cell(data="one", model="small-cnn", method="core")
    assert cell.model_copy(update={"setting": "another"}).key == cell.key
    others: dict[str, Any] = {
        "data": "two",
        "model": "t-resnet",
        "method": "lora",
        "frame": "tt",
        "rank": 3,
        "split": "random",
        "fold": 4,
        "seed": 5,
        "shift": "gain:20",
        "labels": 0.1,
        "statistics": "calibrated",
        "scale": "none",
        "unseen": 1,
        "steps": 7,
        "batch": 8,
        "optimiser": "sgd",
    }
    assert set(others) == set(Cell.model_fields) - {"setting"}
    keys = {cell.model_copy(update={name: value}).key for name, value in others.items()}
    assert len(keys | {cell.key}) == len(others) + 1


def test_folds_come_in_the_order_of_the_people_whatever_the_seeds() -> None:
    for seeds in (1, 3):
        found = cells({"methods": ["head"], "folds": 2, "seeds": seeds})
        assert {c.fold for c in found} == {7, 3}
    everyone = cells({"methods": ["head"], "folds": 0, "seeds": 1})
    assert sorted(c.fold for c in everyone) == sorted(PEOPLE["one"])


def test_a_larger_grid_holds_every_cell_of_a_smaller_one() -> None:
    small = {c.key for c in cells({"methods": ["core", "head"], "folds": 1, "seeds": 1})}
    large = {c.key for c in cells({"methods": ["all"], "ranks": [2, 4], "folds": 3, "seeds": 2})}
    assert small < large


def test_cells_of_one_base_stand_together_and_methods_keep_the_grid_s_order() -> None:
    found = cells_of(
        grid({"setting": "z", "methods": ["head"]}, {"setting": "a", "methods": ["full", "core"]}),
        PEOPLE,
    )
    assert [c.setting for c in found] == ["z"] * 6 + ["a"] * 12
    places = [(c.setting, c.seed, c.fold) for c in found]
    assert places == sorted(places, key=lambda p: ("za".index(p[0]), *p[1:]))
    assert [c.method for c in found[6:10]] == ["full", "core"] * 2


def test_all_means_every_method_without_the_ablations_of_cores() -> None:
    found = {c.method for c in cells({"methods": ["all", "core-middle", "core"]})}
    assert found == {*ALL, "core-middle"}
    assert set(TUNERS) - set(ALL) == {
        "core-middle",
        "core-input",
        "core-svd-init",
        "core-residual",
        "core-bn",
    }


@given(
    methods=st.lists(st.sampled_from(sorted(TUNERS)), min_size=1, max_size=4),
    ranks=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    frames=st.lists(st.sampled_from(["svd", "tt", "random"]), min_size=1, max_size=2),
    data=st.lists(st.sampled_from(sorted(PEOPLE)), min_size=1, max_size=3),
    folds=st.integers(0, 4),
    seeds=st.integers(1, 2),
)
def test_cells_are_distinct_and_their_number_is_the_product_of_what_matters(
    methods: list[str],
    ranks: list[int],
    frames: list[str],
    data: list[str],
    folds: int,
    seeds: int,
) -> None:
    part = {"methods": methods, "ranks": ranks, "frames": frames, "data": data}
    found = cells({**part, "folds": folds, "seeds": seeds})
    variants = sum(
        (len(set(frames)) if TUNERS[name].framed else 1)
        * (len(set(ranks)) if TUNERS[name].ranked else 1)
        for name in set(methods)
    )
    assert len({c.key for c in found}) == len(found)
    assert len(found) == variants * len(set(data)) * (folds or 4) * seeds


def test_a_grid_is_read_from_toml_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'source_windows = 512\n[[parts]]\ndata = ["one"]\nranks = [2, 4]\n'
        '[[parts]]\nsetting = "shift"\ndata = ["two"]\nshifts = ["remount:35"]\n'
    )
    found = read_grid(path)
    assert (found.source_windows, found.epochs, found.players) == (512, 6, 2)
    assert found.parts[0] == Part(data=("one",), ranks=(2, 4))
    assert (found.parts[1].setting, found.parts[1].shifts) == ("shift", ("remount:35",))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("parts = [", "grid-syntax", "no TOML"),
        ("", "grid-invalid", "parts"),
        ("parts = []", "grid-invalid", "parts"),
        ('[[parts]]\ndata = ["one"]\nmethods = []', "grid-invalid", "methods"),
        ('[[parts]]\ndata = ["one"]\nmethod = ["core"]', "grid-invalid", "method"),
        ('[[parts]]\ndata = ["one"]\nranks = [0]', "grid-invalid", "ranks"),
        ('[[parts]]\ndata = ["one"]\nsteps = [0]', "grid-invalid", "steps"),
        ('[[parts]]\ndata = ["one"]\nlabels = [0.0]', "grid-invalid", "labels"),
        ('[[parts]]\ndata = ["one"]\nlabels = [1.5]', "grid-invalid", "labels"),
        ('[[parts]]\ndata = ["one"]\nsplits = ["shuffled"]', "grid-invalid", "splits"),
        ('[[parts]]\ndata = ["one"]\nfolds = -1\nseeds = 0', "grid-invalid", "seeds"),
    ],
)
def test_a_grid_that_is_wrong_is_refused_with_its_place(
    text: str, code: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_grid(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml") as caught:
        read_grid(tmp_path / "absent.toml")
    assert caught.value.code == "grid-missing"


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"methods": ["core", "magic"]}, "unknown-method"),
        ({"methods": ["core+magic"]}, "unknown-method"),
        ({"methods": ["core+head+head"]}, "unknown-method"),
        ({"methods": ["adabn+head"]}, "unknown-method"),
        ({"models": ["small-cnn", "vgg"]}, "unknown-model"),
        ({"frames": ["svd", "qr"]}, "unknown-frame"),
        ({"frames": ["-planned"]}, "unknown-frame"),
        ({"shifts": ["none", "remount"]}, "bad-shift"),
    ],
)
def test_unknown_names_are_found_before_anything_is_run(part: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        check_names(grid({}, part))
    assert caught.value.code == code


def test_known_names_pass() -> None:
    check_names(
        grid(
            {
                "methods": ["all", "core+bias+head", "lora+head"],
                "models": ["calanet", "t-resnet"],
                "frames": ["people", "svd-planned"],
                "shifts": ["none", "remount:35+gain:10"],
            }
        )
    )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_the_grids_of_the_experiments_can_be_read(path: Path) -> None:
    check_names(read_grid(path))


def test_cells_do_not_change_once_they_are_made() -> None:
    cell = Cell(data="one", model="small-cnn", method="core")
    with pytest.raises(ValidationError):
        cell.seed = 3  # type: ignore[misc]


def test_a_cell_that_two_headings_share_is_run_once_and_stands_under_both() -> None:
    parts = [
        {"setting": "main", "data": ["one"], "methods": ["core", "full"], "folds": 1, "seeds": 1},
        {"setting": "ranks", "data": ["one"], "methods": ["core"], "ranks": [2, 4], "folds": 1}
        | {"seeds": 1},
    ]
    headings = headings_of(grid(*parts), PEOPLE)
    cells = {cell.key: cell for cell in cells_of(grid(*parts), PEOPLE)}
    assert headings.keys() == cells.keys()
    named = {(cells[key].method, cells[key].rank): where for key, where in headings.items()}
    assert named == {
        ("core", 2): ("main", "ranks"),
        ("full", 0): ("main",),
        ("core", 4): ("ranks",),
    }

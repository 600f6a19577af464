from __future__ import annotations

from pathlib import Path

import pytest

from fleet.errors import InputError
from simulations.sweep.recipe import Recipe, check, read_recipe, with_axes

WHOLE = """
title = "Two ranks"
[run]
data = "synthetic"
base-epochs = 3
[sweep]
rank = [1, 2]
method = ["core", "core,head"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_and_the_command_line_replaces_and_adds_axes(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, WHOLE))
    assert (recipe.title, dict(recipe.run)) == (
        "Two ranks",
        {"data": "synthetic", "base-epochs": 3},
    )
    assert dict(recipe.axes) == {"rank": (1, 2), "method": ("core", "core,head")}
    more = with_axes(recipe, ["rank=4", "lr=0.03,0.1", "seeds=0, 1"])
    assert dict(more.axes) == {
        "rank": ("4",),
        "method": ("core", "core,head"),
        "learning-rate": ("0.03", "0.1"),
        "seed": ("0", "1"),
    }
    check(more)


def test_an_array_on_the_command_line_holds_values_with_commas() -> None:
    recipe = with_axes(Recipe("test", "", {}, {}), ["""method=["core,head", "full"]"""])
    assert recipe.axes["method"] == ("core,head", "full")
    check(recipe)


def test_a_title_is_the_file_s_name_where_none_is_given(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, "[run]\nrank = 2\n")).title == "recipe"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[run\n", "recipe-syntax", ["recipe.toml is no TOML", "docs/sweeps.md"]),
        ("[runs]\n", "recipe-invalid", ["did you mean run?", "known: title, run, sweep"]),
        ("run = 3\n", "recipe-invalid", ["run is a table"]),
        ("[run]\nrnak = 2\n", "recipe-invalid", ["recipe.toml", "'rnak'", "did you mean rank?"]),
        ("[run]\nout = 'x'\n", "recipe-invalid", ["--out"]),
        ("[sweep]\nrank = 2\n", "recipe-invalid", ["rank: an axis is a list"]),
        ("[sweep]\nrank = []\n", "recipe-invalid", ["rank: an axis is a list"]),
        ("[run]\nrank = 1\n[sweep]\nrank = [2]\n", "recipe-invalid", ["[run] and in [sweep]"]),
        ("[run]\nxx = 1\n[sweep]\nyy = [2]\n", "recipe-invalid", ["2 problems", "'xx'", "'yy'"]),
    ],
)
def test_a_wrong_recipe_says_the_file_the_key_and_what_is_known(
    tmp_path: Path, text: str, code: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(written(tmp_path, text))
    assert caught.value.code == code
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rank=0", ["rank = '0'", "greater than or equal to 1"]),
        ("rank=two", ["rank = 'two'", "integer"]),
        ("rank=1,0,-1", ["2 problems"]),
        ("method=cores", ["method = 'cores'", "did you mean core?", "local"]),
        ("method=core,", []),
        ("model=t-resnt", ["did you mean t-resnet?"]),
        ("shift=wobble:3", ["shift = 'wobble:3'"]),
        ("frame=qr", ["frame = 'qr'", "svd"]),
        ("memory-budget=64MiB", []),
        ("memory-budget=64 miles", ["memory-budget"]),
    ],
)
def test_every_value_is_checked_before_anything_runs(text: str, words: list[str]) -> None:
    recipe = with_axes(Recipe("here", "", {}, {}), [text])
    if not words:
        check(recipe)
        return
    with pytest.raises(InputError) as caught:
        check(recipe)
    assert caught.value.code == "recipe-invalid"
    for word in ("here", *words):
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("rank", "axis"),
        ("rank=", "axis"),
        ("=1", "axis"),
        ("rank=[1", "axis"),
        ("rnk=1", "recipe-invalid"),
    ],
)
def test_a_wrong_axis_is_refused(text: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        with_axes(Recipe("here", "", {}, {}), [text])
    assert caught.value.code == code


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "none.toml")
    assert caught.value.code == "recipe-missing"

from __future__ import annotations

import csv
import json
import logging
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.har.canonical import read
from fleet.models import registry
from server.control.cli.root import run

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "simulations" / "experiments"
RECIPES = [
    "first_fleet.py",
    "sweep-rank.toml",
    "robust_aggregation.py",
    "sweep-traces.toml",
    "own_data_and_model.py",
]
SWEEPS = [name for name in RECIPES if name.endswith(".toml")]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a script does to its process ends with the test."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    level = logging.getLogger("flwr").level
    yield
    logging.getLogger("flwr").setLevel(level)


def script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> dict[str, Any]:
    """Run a recipe as a script of this process; return its names."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    return runpy.run_path(str(FOLDER / name), run_name="__main__")


def sweep_and_report(
    capsys: pytest.CaptureFixture[str], name: str, out: Path, *axes: str
) -> list[dict[str, Any]]:
    """Run a recipe with other values; return the report's groups."""
    where = ["--out", str(out), "--jobs", "1", "--format", "json"]
    assert run(["sweep", str(FOLDER / name), *axes, *where]) == 0
    capsys.readouterr()
    assert run(["report", str(out), "--csv", str(out / "cells.csv"), "--format", "json"]) == 0
    groups: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["data"]["groups"]
    return groups


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) < 100
    head = text.split('"""')[1] if name.endswith(".py") else text.split("\n[run]")[0]
    command = "fleet sweep" if name in SWEEPS else "python"
    assert f"{command} simulations/experiments/{name}" in head
    assert re.search(r"[Ee]xpect", head)


def test_no_recipe_uses_a_private_name() -> None:
    for name in RECIPES:
        assert not re.search(r"(\bimport|[\s.])_[a-z]", (FOLDER / name).read_text()), name


def test_the_first_fleet_reports_draws_and_serves_what_it_learned(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    names = script(monkeypatch, "first_fleet.py", "--toy", "--data", tiny_data, "--out", tmp_path)
    methods = names["report"]["methods"]
    assert list(methods) == ["core", "head", "full"]
    assert methods["core"]["bytes_up"] * 50 < methods["full"]["bytes_up"]
    assert methods["full"]["macro_f1"] != names["report"]["before"]["macro_f1"]
    for name in ("f1-by-round", "f1-by-device", "f1-by-bytes"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 5000
    assert re.search(r"person \d+: \d+ of \d+ later windows", capsys.readouterr().out)


def test_the_rank_sweep_compares_ranks(
    capsys: pytest.CaptureFixture[str], tiny_data: Path, tiny_base_file: Path, tmp_path: Path
) -> None:
    axes = [f"data={tiny_data}", f"base={tiny_base_file}", "rank=1,2", "lr=0.1", "seed=0"]
    groups = sweep_and_report(capsys, "sweep-rank.toml", tmp_path, *axes, "rounds=1")
    assert [(g["values"], g["bytes_up"]) for g in groups] == [
        ({"rank": 1}, 1280),
        ({"rank": 2}, 2560),
    ]


def test_an_attack_ruins_the_mean_and_spares_the_rules_that_are_made_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--toy", "--rules", "mean,krum:3", "--out", tmp_path]
    script(monkeypatch, "robust_aggregation.py", *words)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["rule", "before", "honest", "attacked"]
    rows = {name: tuple(map(float, scores)) for name, *scores in map(str.split, lines)}
    assert list(rows) == ["mean", "krum:3"]
    before, honest, ruined = rows.pop("mean")
    assert ruined < before < honest
    for name, (_, unharmed, attacked) in rows.items():
        assert min(unharmed, attacked) > max(before, ruined + 0.1), name
    (record, *_) = sorted((tmp_path / "krum-3" / "attacked" / "rounds").iterdir())
    rule = json.loads(record.read_text())["rule"]
    assert (rule["name"], rule["liars"], len(rule["followed"])) == ("krum", 3, 1)


def test_the_traces_sweep_tells_hours_to_the_target(
    capsys: pytest.CaptureFixture[str], tiny_data: Path, tiny_base_file: Path, tmp_path: Path
) -> None:
    size = ["devices=12", "windows-per-device=6", "cohort=4", "evaluate-devices=12", "rounds=2"]
    data = [f"data={tiny_data}", f"base={tiny_base_file}", "rank=2", "seed=0", "target-f1=0.05"]
    groups = sweep_and_report(
        capsys, "sweep-traces.toml", tmp_path, "trace=steady,nightly", *size, *data
    )
    steady, nightly = groups
    assert [g["values"]["trace"] for g in groups] == ["steady", "nightly"]
    assert 0 < steady["hours"] < nightly["hours"]
    assert steady["reached"] == 1
    with (tmp_path / "cells.csv").open(newline="") as file:
        assert [float(row["hours"]) for row in csv.DictReader(file)] == [
            steady["hours"],
            nightly["hours"],
        ]


def test_csv_recordings_become_a_data_set_that_a_model_of_one_s_own_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script(monkeypatch, "own_data_and_model.py", "--toy", "--out", tmp_path)
    before, after = (float(f1) for f1 in re.findall(r"0\.\d+", capsys.readouterr().out))
    assert after > before
    data = read(tmp_path / "mine.npz")
    assert data.labels == ("rest", "run", "stroll")
    assert data.subjects == tuple(range(8))
    assert data.x.shape == (8 * 3 * 19, 3, 128)
    recorded = (tmp_path / "csv" / "3-day.csv").read_text().splitlines()[1].split(",")
    first = data.physical(np.flatnonzero(data.subject == 3)[:1])[0, :, 0]
    np.testing.assert_allclose(first, [float(value) for value in recorded[:3]], atol=2e-3)


def test_a_recipe_says_which_command_line_it_does_not_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script(monkeypatch, "own_data_and_model.py", "--cvs", "x")
    assert caught.value.code == 2
    assert "--cvs" in capsys.readouterr().err


def test_the_page_of_recipes_lists_each_with_its_command() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for name in RECIPES:
        assert re.search(rf"(python|fleet sweep) simulations/experiments/{re.escape(name)}", page)


def test_the_tutorial_quotes_the_recipe_word_for_word() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    recipe = (FOLDER / "first_fleet.py").read_text()
    quoted = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(quoted) == 4
    for block in quoted:
        assert block in recipe

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks.peft.report import write_report
from simulations.benchmarks.peft.rows import FULL, Condition, Place, Table, Variant
from simulations.benchmarks.peft.summary import paired, ranking, steps_to, summarise

CORE = Variant("core", "svd", 2)
HEAD = Variant("head")
NO_GROUPS = "lora cannot do grouped | convolutions"


def cell(method: str = "core", f1: float | None = 0.8, /, **changes: Any) -> dict[str, Any]:
    framed = method.startswith("core")
    trained = {"full": 1000, "core": 20, "head": 50}.get(method, 30)
    end = [] if f1 is None else [[10, (0.5 + f1) / 2], [50, f1]]
    return {
        "data": "hapt",
        "model": "small-cnn",
        "method": method,
        "frame": "svd" if framed else "-",
        "rank": 2 if framed or method == "lora" else 0,
        "split": "chronological",
        "fold": 3,
        "seed": 0,
        "shift": "none",
        "labels": 1.0,
        "statistics": "frozen",
        "scale": "response",
        "unseen": 0,
        "steps": 50,
        "batch": 64,
        "optimiser": "adam",
        "setting": "main",
        "rate": 0.01,
        "macro_f1": f1,
        "curve": [[0, 0.5], *end],
        "trained_parameters": trained,
        "total_parameters": 1000,
        "bytes": 4 * trained,
        "merges": True,
        "train_seconds": 1.0,
        "refused": "",
    } | changes


def refused(**changes: Any) -> dict[str, Any]:
    none: dict[str, Any] = {"curve": [], "trained_parameters": 0, "bytes": 0, "merges": False}
    return cell("lora", None, **none, refused=NO_GROUPS, **changes)


def table_of(records: list[dict[str, Any]], costs: list[dict[str, Any]] | None = None) -> Table:
    (table,) = summarise(records, costs or [])
    return table


def four(values: list[float], method: str = "core", **changes: Any) -> list[dict[str, Any]]:
    """Two people by two seeds."""
    places = [(3, 0), (3, 1), (7, 0), (7, 1)]
    return [
        cell(method, f1, fold=fold, seed=seed, **changes)
        for f1, (fold, seed) in zip(values, places, strict=True)
    ]


def test_means_and_the_spread_over_people_and_over_seeds() -> None:
    row = table_of(four([0.8, 0.9, 0.6, 0.7])).row(CORE)
    assert row is not None
    score = row.scores[Place("hapt", "small-cnn")]
    assert score.mean == pytest.approx(0.75)
    assert score.fold_std == pytest.approx(0.2 / math.sqrt(2))  # 0.85 and 0.65
    assert score.seed_std == pytest.approx(0.1 / math.sqrt(2))  # 0.7 and 0.8
    assert (score.cells, score.refused, score.diverged) == (4, 0, 0)
    assert score.trained_share == 0.02
    assert (score.bytes, score.before, score.merges) == (80, 0.5, True)


def test_one_person_and_one_seed_have_no_spread() -> None:
    row = table_of([cell(), cell("full", 0.9)]).row(CORE)
    assert row is not None
    score = row.scores[Place("hapt", "small-cnn")]
    assert (score.fold_std, score.seed_std) == (None, None)
    assert row.difference.mean == pytest.approx(-0.1)
    assert row.difference.error is None


def test_a_set_with_more_people_weighs_no_more() -> None:
    records = [*four([0.8] * 4), cell("core", 0.6, data="usc-had")]
    row = table_of(records).row(CORE)
    assert row is not None
    assert row.overall.mean == pytest.approx(0.7)
    assert row.covered == 2


def test_the_paired_difference_averages_seeds_before_its_standard_error() -> None:
    core = four([0.80, 0.84, 0.70, 0.70])
    full = four([0.90, 0.90, 0.72, 0.72], "full")
    alone = [cell("core", 0.1, fold=9), cell("full", None, fold=9)]
    found = paired([*core, *full, *alone], CORE)
    # People: -0.08 and -0.02; mean -0.05, deviation 0.06/√2, standard error 0.03.
    assert found.mean == pytest.approx(-0.05)
    assert found.error == pytest.approx(0.03)
    assert (found.clusters, found.cells) == (2, 4)


def test_cells_of_other_conditions_are_no_pair() -> None:
    found = paired([cell("core", 0.8), cell("full", 0.9, shift="remount:35")], CORE)
    assert (found.mean, found.clusters) == (None, 0)


@pytest.mark.parametrize(
    ("target", "steps"), [(0.4, 0), (0.6, 5), (0.7, 10), (0.75, 30), (0.8, 50), (0.81, None)]
)
def test_the_first_step_at_a_score_is_read_off_straight_lines(
    target: float, steps: float | None
) -> None:
    curve = ((0, 0.5), (10, 0.7), (50, 0.8))
    assert steps_to(curve, target) == (None if steps is None else pytest.approx(steps))


def test_time_to_fulls_score_is_in_steps_and_in_steps_of_full() -> None:
    records = [cell("core", 0.85), cell("full", 1.0)]
    cost = {"data": "hapt", "model": "small-cnn", "method": "core", "frame": "svd", "rank": 2}
    row = table_of(records, [cost | {"step_of_full": 0.5, "refused": ""}]).row(CORE)
    assert row is not None
    assert row.overall.steps_to == {0.85: pytest.approx(50), 0.9: None}
    assert row.overall.full_steps_to == {0.85: pytest.approx(25), 0.9: None}


def test_full_is_judged_on_the_people_whom_a_variant_has() -> None:
    records = [cell("core", 0.8), cell("full", 0.9), cell("full", 0.1, fold=7)]
    row = table_of(records).row(CORE)
    assert row is not None
    assert row.overall.steps_to[0.9] is None  # 0.81
    assert row.overall.steps_to[0.85] == pytest.approx(10 + 40 * (0.765 - 0.65) / 0.15)


def test_what_diverged_is_counted_and_left_out() -> None:
    curve = [[0, 0.5], [7, None]]
    records = [*four([0.8, 0.9, 0.6, 0.7])[:3], cell("core", None, fold=7, seed=1, curve=curve)]
    row = table_of(records).row(CORE)
    assert row is not None
    score = row.scores[Place("hapt", "small-cnn")]
    assert score.mean == pytest.approx(2.3 / 3)
    assert (score.cells, score.diverged) == (4, 1)
    assert [step for step, _ in score.curve] == [0, 10, 50]
    # Only seed 0 has both people: between it and seed 1 there is nothing to compare.
    assert score.seed_std is None


def test_ranking_knows_who_trains_no_more_and_leaves_out_who_lacks_a_set() -> None:
    sets = ("hapt", "usc-had")
    records = [cell("core", 0.8, data=name) for name in sets]
    records += [cell("full", 0.9, data=name) for name in sets]
    records += [cell("head", 0.7, data=name, trained_parameters=20) for name in sets]
    records += [cell("bias", 0.95, trained_parameters=10)]
    table = table_of(records)
    ranked = ranking(table, CORE)
    assert [row.variant for row, _ in ranked] == [CORE, HEAD]
    assert [f1 for _, f1 in ranked] == pytest.approx([0.8, 0.7])
    assert table.leading == CORE


def test_a_heading_without_full_fine_tuning_borrows_its_cells_and_nothing_else() -> None:
    main = [cell(m, f1) for m, f1 in (("full", 0.9), ("core", 0.8), ("head", 0.7))]
    ranks = [cell("core", 0.85, rank=4, setting="ranks")]
    tables = summarise([*main, *ranks])
    assert [t.setting for t in tables] == ["main", "ranks"]
    assert {r.variant for r in tables[0].rows} == {CORE, FULL, HEAD}
    swept = {r.variant: r.overall.mean for r in tables[1].rows}
    assert swept == {CORE._replace(rank=4): 0.85, FULL: 0.9}


def test_rows_are_flat_json_for_scripts() -> None:
    records = [cell(), cell("full", 0.9), refused(), cell("head", None)]
    core, head, full, lora = json.loads(json.dumps(table_of(records).as_records()))
    assert (core["method"], core["macro_f1"], core["trained_share"]) == ("core", 0.8, 0.02)
    assert core["delta_to_full"] == pytest.approx(-0.1)
    assert (head["macro_f1"], head["trained_share"], head["diverged"]) == (None, 0.05, 1)
    assert (lora["trained_share"], lora["refused"]) == (0, 1)
    assert full["steps_to"]["0.9"] == pytest.approx(10 + 40 * 0.11 / 0.2)


def test_names_say_only_what_is_unusual() -> None:
    assert Variant("core", "svd", 2, "none", "sgd", "calibrated").label == (
        "core svd r2 unscaled SGD calibrated"
    )
    assert FULL.label == "full"
    assert Condition("random", "gain:20", 0.1, 2, 20, 8).label == (
        "random split, shift gain:20, 10% of the labels, 2 unseen classes, 20 steps, batches of 8"
    )


def grid() -> list[dict[str, Any]]:
    records = []
    for method, f1 in (("full", 0.9), ("core", 0.85), ("head", 0.7)):
        records += four([f1, f1 + 0.01, f1 - 0.1, f1 - 0.09], method)
        records += [cell(method, f1, setting="shift")]
        records += [cell(method, f1 - 0.2, setting="shift", shift="remount:35")]
    records += [refused(fold=fold) for fold in (3, 7)]
    records += [cell("bias", 0.6), cell("bias", None, fold=7)]
    records += [cell("core", 0.7 + rank / 100, rank=rank, setting="ranks") for rank in (1, 4)]
    return records


def costs() -> list[dict[str, Any]]:
    common = {"data": "hapt", "model": "small-cnn", "frame": "-", "rank": 0}
    figures = {"macs_per_step": 2e6, "macs_of_full": 0.5, "saved_bytes": 3000}
    figures |= {"saved_of_full": 0.25, "dynamic_bytes": 9000, "dynamic_of_infer": 1.5}
    figures |= {"step_seconds": 0.004, "step_of_full": 0.8}
    return [
        common | figures | {"method": "head", "refused": ""},
        common | {"method": "adabn", "refused": "takes no gradient step"},
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    sweep = {"variant": cell(), "rate": 0.03, "scores": {"0.01": 0.8, "0.03": None}}
    rates = [sweep | {"at_edge": True}, sweep | {"rate": 0.01, "at_edge": False}]
    header = {"command": "fleet bench peft", "machine": "a box", "versions": {"torch": "2"}}
    write_report(grid(), costs(), rates, header, folder)
    return folder


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_report_says_how_it_was_made_and_what_came_out(written: Path) -> None:
    text = (written / "REPORT.md").read_text()
    assert "$ fleet bench peft" in text
    assert "a box; torch 2." in text
    assert "21 cells; 2 refused, 1 diverged" in text
    core = line_of(text, "| core svd r2 |")
    assert "0.805 ± 0.071 (0.007)" in core
    assert "-0.050 ± 0.000" in core
    assert core.endswith("| yes | yes |")
    assert "| *before* | 0.500 | 0.500 |" in text
    assert "## shift: chronological split, shift remount:35" in text


def test_a_refused_cell_is_a_dash_with_its_reason_below(written: Path) -> None:
    text = (written / "REPORT.md").read_text()
    assert line_of(text, "| lora r2 |").startswith("| lora r2 | –<sup>1</sup> | – | – |")
    assert "<sup>1</sup> lora cannot do grouped \\| convolutions" in text


def test_a_diverged_cell_leaves_a_mark(written: Path) -> None:
    text = (written / "REPORT.md").read_text()
    assert "| 0.600 †1/2 |" in line_of(text, "| bias |")
    assert "†n/m: n of m cells diverged" in text


def test_costs_and_rates_have_their_tables(written: Path) -> None:
    text = (written / "REPORT.md").read_text()
    assert "| hapt small-cnn | head | 2.0 | 0.500 | 3 | 0.250 | 9 | 1.50 | 4.0 | 0.80 |" in text
    assert "| hapt small-cnn | adabn | –<sup>1</sup> |" in text
    assert "<sup>1</sup> takes no gradient step" in text
    assert "| core svd r2 | small-cnn | as published | 0.03, 0.01 | **yes**, no |" in text


def test_the_csv_has_every_cell_and_its_curve(written: Path) -> None:
    lines = list(csv.DictReader((written / "cells.csv").read_text().splitlines()))
    assert len(lines) == len(grid())
    assert lines[0]["f1_at_step_50"] == lines[0]["macro_f1"] == "0.9"
    diverged = next(line for line in lines if line["method"] == "bias" and line["fold"] == "7")
    assert (diverged["macro_f1"], diverged["f1_at_step_50"]) == ("", "")


def test_pictures_are_drawn_and_shown(written: Path) -> None:
    text = (written / "REPORT.md").read_text()
    names = {path.name for path in (written / "plots").iterdir()}
    drawn = ("bytes-main", "curves-main", "ranks-ranks", "shifts-shift")
    assert names == {f"{name}-chronological.png" for name in drawn}
    for name in names:
        assert f"](plots/{name})" in text
        content = (written / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000


def test_nothing_to_draw_gives_no_picture(tmp_path: Path) -> None:
    (row,) = write_report([refused()], [], [], {}, tmp_path)
    assert (row["method"], row["macro_f1"]) == ("lora", None)
    assert not (tmp_path / "plots").exists()
    assert (
        "| lora r2 | –<sup>1</sup> | – | – | – | – | – | – | – | no |"
        in (tmp_path / "REPORT.md").read_text()
    )

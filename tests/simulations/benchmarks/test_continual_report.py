from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.benchmarks.continual.pictures import curves_of
from simulations.benchmarks.continual.report import text_of, write_report
from simulations.benchmarks.continual.summary import Line, Table, summarise
from simulations.benchmarks.continual.verdict import verdicts
from tests.simulations.benchmarks.tiny_continual import made

# By hand: core − fedavg-head is .1, .2, 0, .1: mean .1, deviation √(.02 / 3), and Student's
# quantile of 97.5 % with three degrees of freedom is 3.182446.
FULL = made("fedavg-full", [0.8, 0.8, 0.8, 0.8], bytes_up=10_000)
HEAD = made("fedavg-head", [0.6, 0.5, 0.7, 0.6], bytes_up=100)
CORE = made("core", [0.7, 0.7, 0.7, 0.7], bytes_up=150, old=0.6)
HEAVY = made("fedit-lora", [0.9, 0.7, 0.7, 0.9], bytes_up=201)
JOINT = made("core-joint", [0.95, 0.95, 0.95, 0.95], bytes_up=150, old=0.7)
REACH = 3.182446 * (0.02 / 3) ** 0.5 / 2
HEADER = {"command": "fleet bench continual", "machine": "a box", "versions": {"torch": "2"}}


@pytest.fixture(scope="module")
def table() -> Table:
    (found,) = summarise([*FULL, *HEAD, *CORE, *HEAVY, *JOINT])
    return found


def line(table: Table, name: str) -> Line:
    return next(each for each in table.lines if each.strategy == name)


def test_means_and_deviations_are_over_blocks(table: Table) -> None:
    stat = line(table, "fedavg-head").stats["average_f1"]
    assert stat is not None
    assert (stat.mean, stat.blocks) == (pytest.approx(0.6), 4)
    assert stat.sd == pytest.approx((0.02 / 3) ** 0.5)
    assert line(table, "core").mean("worst_decile_f1") == pytest.approx(0.35)
    assert line(table, "core").mean("forgetting") == pytest.approx(0.1), "of known classes"
    assert line(table, "core").stats["backward_transfer"] is None
    assert line(table, "core").stats["old_f1"] is None, "no class came later"


def test_bytes_are_a_share_of_fedavg_full_s(table: Table) -> None:
    shares = {each.strategy: each.mean("bytes_share") for each in table.lines}
    assert shares == pytest.approx(
        {
            "fedavg-full": 1.0,
            "fedavg-head": 0.01,
            "core": 0.015,
            "fedit-lora": 0.0201,
            "core-joint": 0.015,
        }
    )


def test_ranks_are_among_those_that_send_little_and_keep_no_windows(table: Table) -> None:
    ranks = {each.strategy: (each.rank, each.worst_rank) for each in table.lines}
    assert ranks == {
        "fedavg-full": (None, None),
        "fedavg-head": (2, 2),
        "core": (1, 1),
        "fedit-lora": (None, None),
        "core-joint": (None, None),
    }


def test_differences_are_paired_block_by_block(table: Table) -> None:
    light, worst = table.against_light
    assert (light.strategy, light.rival, light.metric) == ("core", "fedavg-head", "average_f1")
    assert light.mean == pytest.approx(0.1)
    assert light.low == pytest.approx(0.1 - REACH, abs=1e-6)
    assert light.high == pytest.approx(0.1 + REACH, abs=1e-6)
    assert (light.blocks, light.sets_ahead, light.sets) == (4, 2, 2)
    assert worst.mean == pytest.approx(0.05)
    best = table.against_all[0]
    assert best.rival in {"fedavg-full", "fedit-lora"}
    assert best.mean == pytest.approx(-0.1)
    assert best.sets_ahead == 0


def test_old_classes_are_held_against_those_with_all_windows() -> None:
    cells = [
        *made("core", [0.5] * 4, start_classes=1, old=0.6),
        *made("core-joint", [0.5] * 4, start_classes=1, old=0.7),
    ]
    (table,) = summarise(cells)
    (old,) = table.against_joint
    assert (old.metric, old.mean) == ("old_f1", pytest.approx(-0.1))
    assert line(table, "core").stats["old_f1"] is not None


def test_one_block_has_no_interval_and_a_missing_one_no_rank() -> None:
    cells = [*FULL[:1], *HEAD[:1], *CORE[:1]]
    (one,) = summarise(cells)
    assert one.against_light[0].low is None
    assert line(one, "core").rank == 1
    (two,) = summarise([*FULL, *HEAD, *CORE[:3]])
    assert (line(two, "core").blocks, line(two, "core").rank) == (3, None)
    assert line(two, "fedavg-head").rank == 1
    assert verdicts([two])[0].first == 0
    text = text_of([*FULL, *HEAD, *CORE[:3]], [], HEADER)
    assert "`core` ‡3/4" in text


def test_a_strategy_that_could_never_be_judged_has_no_rank_and_is_nobody_s_rival() -> None:
    unjudged = made("ffa-lora", [0.0] * 4, bytes_up=100)
    for record in unjudged:
        record["row"] |= {"average_f1": None, "worst_decile_f1": None, "f1": [None] * 3}
    records = [*unjudged, *FULL, *HEAD, *CORE]
    (found,) = summarise(records)
    assert (line(found, "ffa-lora").rank, line(found, "core").rank) == (None, 1)
    assert {pair.rival for pair in found.against_light} == {"fedavg-head"}
    (ours,) = verdicts([found])
    assert (ours.first, ours.first_worst) == (1, 1)
    rows = [row for row in text_of(records, [], HEADER).split("\n") if row.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert names.index("ffa-lora") > names.index("fedavg-head"), "the last of its table"
    assert curves_of(unjudged) == {"ffa-lora": [None] * 3}


def test_a_verdict_counts_scenarios(table: Table) -> None:
    (lost,) = summarise(
        [
            *made("fedavg-full", [0.705], scenario="other", bytes_up=10_000),
            *made("fedavg-head", [0.7], scenario="other", bytes_up=100),
            *made("core", [0.7], scenario="other", bytes_up=150),
        ]
    )
    (core,) = [each for each in verdicts([table, lost]) if each.strategy == "core"]
    assert (core.first, core.first_worst, core.first_both) == (1, 1, 1), "a draw is no lead"
    assert core.near == 1, "half a point behind, and ten points behind"


def test_curves_are_means_over_blocks_and_leave_out_what_lacks_some() -> None:
    curves = curves_of([*HEAD, *CORE[:3]])
    assert set(curves) == {"fedavg-head"}
    assert curves["fedavg-head"] == [pytest.approx(0.6), None, 1.0]


def test_the_report_has_every_number_and_a_picture_for_each_scenario(tmp_path: Path) -> None:
    refused = {**CORE[0], "scenario": "lacks", "row": None, "refused": "too few", "seconds": 0.0}
    rates = [
        {
            "scenario": "turns",
            "seed": 1000,
            "data": "one",
            "strategy": "core",
            "rate": 0.1,
            "on_edge": True,
        }
    ]
    cells = [*FULL, *HEAD, *CORE, *JOINT, refused]
    write_report(cells, rates, HEADER, tmp_path, tmp_path / "copy.md")
    text = (tmp_path / "REPORT.md").read_text()
    for part in (
        "17 cells, 1 of which cannot be",
        "| `core` | 70.0 ± 0.0 | 35.0 ± 0.0 |",
        "| **1 / 1** |",
        "| ref. |",
        "| `core` − `fedavg-head` | F1 over time | +10.0 | -3.0 … +23.0 | 2 of 2 | 4 |",
        "- lacks on one, 1 cells: too few",
        "| `core` | 0.1\\* |",
        "![F1 over time](plots/turns.png)",
    ):
        assert part in text
    assert "plots/" not in (tmp_path / "copy.md").read_text()
    assert (tmp_path / "plots" / "turns.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["tables"][0]["lines"][2]["rank"] == 1
    assert len(record["cells"]) == 17


def test_a_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    assert write_report([], [], HEADER, tmp_path) == []
    assert "0 cells" in (tmp_path / "REPORT.md").read_text()

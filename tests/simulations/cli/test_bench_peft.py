from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simulations.benchmarks.peft.run
from server.control.cli.root import run

Ask = Callable[..., tuple[int, dict[str, Any]]]
TINY = "--data synthetic --methods core,head --folds 1 --seeds 1 --steps 4 --source-windows 64"
SMOKE = [*TINY.split(), "--epochs", "1", "--players", "1", "--workers", "1", "--no-costs"]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = run(["bench", "peft", *arguments, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def test_the_bench_runs_at_toy_size_and_goes_on_where_it_was(ask: Ask, tmp_path: Path) -> None:
    smoke = [*SMOKE, "--out", str(tmp_path)]
    code, envelope = ask(*smoke)
    assert (code, envelope["status"], envelope["schema_version"]) == (0, "ok", "1")
    data = envelope["data"]
    assert data["command"].startswith("fleet")
    assert [c["method"] for c in data["cells"]] == ["core", "head"]
    assert {row["method"] for row in data["summary"]} == {"core", "head"}
    assert data["costs"] == []
    with open(tmp_path / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["macro_f1"]) for row in rows] == [c["macro_f1"] for c in data["cells"]]
    assert "core svd r2" in (tmp_path / "REPORT.md").read_text()
    again, repeated = ask(*smoke)
    assert again == 0
    assert repeated["data"]["cells"] == data["cells"]
    assert repeated["data"]["rates"] == data["rates"]
    refused, problem = ask(*smoke, "--epochs", "2")
    assert (refused, problem["error_code"]) == (4, "bench-folder")


def test_a_dry_run_counts_cells_estimates_and_writes_nothing(ask: Ask, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, envelope = ask(*SMOKE, "--out", str(out), "--dry-run")
    assert code == 0
    data = envelope["data"]
    assert (data["cells"], data["sweeps"], data["bases"], data["workers"]) == (2, 2, 2, 1)
    assert [row["method"] for row in data["left"]] == ["core", "head"]
    assert data["seconds"] == sum(row["seconds"] for row in data["left"]) > 0
    assert not out.exists()


def test_a_dry_run_draws_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["bench", "peft", *SMOKE, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("2 cells, 2 rate sweeps", "core", "head", "minutes on 1 processes"):
        assert word in text


def test_a_grid_file_says_what_to_run(ask: Ask, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[[parts]]\ndata = ["synthetic"]\nmethods = ["head", "adabn"]\nfolds = 0\nseeds = 2\n'
    )
    code, envelope = ask("--grid", str(grid), "--out", str(tmp_path / "out"), "--dry-run")
    assert code == 0
    assert envelope["data"]["cells"] == 2 * 12 * 2
    assert envelope["data"]["sweeps"] == 2  # one per half of the people; AdaBN has no rate


def test_folds_can_be_all(ask: Ask, tmp_path: Path) -> None:
    tiny = [*SMOKE, "--out", str(tmp_path / "out"), "--dry-run"]
    code, envelope = ask(*tiny, "--folds", "all")
    assert (code, envelope["data"]["cells"]) == (0, 2 * 12)


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulations.benchmarks.peft.run, "execute", interrupted)
    assert run(["bench", "peft", *SMOKE, "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the same command goes on" in printed.err


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("", "no-data"),
        ("--data nowhere", "data-unknown"),
        ("--data synthetic --methods core,magic", "unknown-method"),
        ("--data synthetic --models vgg", "unknown-model"),
        ("--data synthetic --frames qr", "unknown-frame"),
        ("--data synthetic --shifts warp", "bad-shift"),
        ("--data synthetic --splits shuffled", "grid-invalid"),
        ("--data synthetic --labels 0", "grid-invalid"),
        ("--data synthetic --labels many", "grid-invalid"),
        ("--data synthetic --ranks 0", "grid-invalid"),
        ("--data synthetic --ranks two", "not-a-number"),
        ("--data synthetic --folds 0", "bad-folds"),
        ("--data synthetic --folds some", "bad-folds"),
        ("--data synthetic --unseen 6", "bad-class-count"),
        ("--grid absent.toml", "grid-missing"),
        ("--data synthetic --grid absent.toml", "two-grids"),
        ("--data synthetic --seeds 0", "usage"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    ask: Ask, flags: str, error: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, envelope = ask(*flags.split(), "--out", str(out))
    assert (code, envelope["error_code"]) == (4, error)
    assert envelope["message"]
    assert not out.exists()

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simulations.benchmarks.continual.run
from server.control.cli.root import run
from tests.simulations.benchmarks.tiny_continual import scenarios_in
from tests.simulations.inline_workers import Inline

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def grid(tmp_path: Path, tiny_data: Path) -> Path:
    paths = scenarios_in(tmp_path)
    path = tmp_path / "grid.toml"
    path.write_text(
        f'scenarios = ["{paths["turns"]}", "{paths["lacks"]}"]\ndata = ["{tiny_data}"]\n'
        'strategies = ["frozen", "fedavg-full", "core"]\nseeds = [0, 1]\nbase_epochs = 1\n'
        f'[rates]\nscenario = "{paths["turns"]}"\nladder = [0.1]\n'
    )
    return path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], grid: Path, tmp_path: Path) -> Ask:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        fixed = ["--grid", str(grid), "--out", str(tmp_path / "out"), "--workers", "1"]
        code = run(["bench", "continual", *fixed, *arguments, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def test_a_dry_run_counts_cells_estimates_and_writes_nothing(ask: Ask, tmp_path: Path) -> None:
    code, envelope = ask("--dry-run")
    data = envelope["data"]
    assert (code, data["cells"], data["refused"], data["left"]) == (0, 12, 6, 6)
    assert data["hours"] > 0
    assert [row["strategy"] for row in data["strategies"]] == [
        *("frozen", "fedavg-full", "core", "(bases)")
    ]
    assert not (tmp_path / "out").exists()


def test_flags_stand_in_for_the_grid_s_lists_and_choose_a_part(ask: Ask) -> None:
    code, envelope = ask("--seeds", "3,4,5", "--strategies", "core", "--dry-run")
    assert (code, envelope["data"]["cells"]) == (0, 6)
    code, envelope = ask("--only", "strategy=core,seed=1", "--dry-run")
    assert (code, envelope["data"]["cells"]) == (0, 2)


def test_a_dry_run_draws_a_table(
    capsys: pytest.CaptureFixture[str], grid: Path, tmp_path: Path
) -> None:
    arguments = ["--grid", str(grid), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert run(["bench", "continual", *arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("12 cells, 6 of which cannot be", "fedavg-full", "hours on 1 processes"):
        assert word in text


def test_the_bench_runs_at_toy_size_and_writes_its_report(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulations.benchmarks.continual.run, "Workers", Inline)
    copy = tmp_path / "text.md"
    code, envelope = ask("--only", "seed=0", "--report", str(copy))
    assert (code, envelope["status"]) == (0, "ok")
    data = envelope["data"]
    assert len(data["cells"]) == 6
    assert [line["strategy"] for line in data["tables"][0]["lines"]] == [
        *("frozen", "fedavg-full", "core")
    ]
    assert "needs 93 classes" in copy.read_text()
    assert (tmp_path / "out" / "plots" / "turns.png").exists()


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    grid: Path,
    tmp_path: Path,
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulations.benchmarks.continual.run, "execute", interrupted)
    arguments = ["--grid", str(grid), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert run(["bench", "continual", *arguments]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--grid absent.toml", "grid-missing"),
        ("--only colour=red", "bad-only"),
        ("--data nowhere", "data-unknown"),
        ("--strategies magic", "grid-invalid"),
        ("--seeds many", "grid-invalid"),
        ("--seeds 1000", "grid-invalid"),
        ("--scenarios nowhere", "no-such-scenario"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    ask: Ask, tmp_path: Path, flags: str, error: str
) -> None:
    code, envelope = ask(*flags.split())
    assert envelope["error_code"] == error
    assert code != 0
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import simulations.sweep.run
from server.control.cli.root import run
from simulations.cli.report import EPILOG as REPORT_EXAMPLES
from simulations.cli.sweep import EPILOG as SWEEP_EXAMPLES
from simulations.progress import Progress
from simulations.sweep.cells import Cell
from simulations.sweep.store import Failure, Kept, Store
from tests.simulations.sweep.made import kept_sweep, result

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = run([*arguments, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, every cell is done at once but those of rank 9, which fail."""

    def execute(
        store: Store, folder: Path, wanted: Sequence[Cell], jobs: int, progress: Progress
    ) -> list[Kept]:
        for cell in wanted:
            if cell.config.rank == 9:
                store.failed(cell.id, Failure("rank-too-large", "no layer allows it"))
            else:
                store.done(cell.id, [result(0.8, method=m) for m in cell.methods], 2.0)
        return store.kept()

    monkeypatch.setattr(simulations.sweep.run, "execute", execute)
    monkeypatch.chdir(tmp_path)


def examples(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("fleet ")]


@pytest.mark.usefixtures("at_once")
def test_the_examples_of_sweep_s_help_run(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[run]\ndata = 'synthetic'\n[sweep]\nrank = [1, 2]\n")
    for example in examples(SWEEP_EXAMPLES):
        code, envelope = ask(*example)
        assert (code, envelope["status"]) == (0, "ok"), example
    assert (tmp_path / "runs/ranks/results.sqlite").is_file()
    assert (tmp_path / "runs/sweep-recipe/results.sqlite").is_file()
    assert (tmp_path / "runs/sweep/results.sqlite").is_file()


def test_the_examples_of_report_s_help_run(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    kept_sweep(tmp_path / "runs/sweep-ranks")
    for name in ("hapt", "hapt-rank-2"):
        (tmp_path / "runs" / name).symlink_to(tiny_run)
    for example in examples(REPORT_EXAMPLES):
        words = [word for word in example if word not in ("--format", "json")]
        code, envelope = ask(*words)
        assert (code, envelope["status"]) == (0, "ok"), example
    for name in ("ranks.html", "ranks.csv", "rounds.csv"):
        assert (tmp_path / name).stat().st_size > 100
    assert [c["result"]["method"] for c in envelope["data"]["cells"]] == ["core", "local"] * 2


@pytest.fixture
def tiny_run(
    tiny_data: Path, tiny_base_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    out = tmp_path / "run"
    flags = f"--data {tiny_data} --base {tiny_base_file} --rank 2 --rounds 1 --out {out}"
    given = ["--methods", "core,local", "--rate", "core=0.05", "--rate", "local=0.1"]
    assert run(["simulate", *flags.split(), *given, "--format", "json"]) == 0
    capsys.readouterr()
    return out


def test_a_real_sweep_prints_a_table_and_what_to_do_next(
    capsys: pytest.CaptureFixture[str], tiny_data: Path, tiny_base_file: Path, tmp_path: Path
) -> None:
    words = [f"data={tiny_data}", f"base={tiny_base_file}", "rank=2", "rounds=1", "lr=0.05"]
    out = tmp_path / "out"
    assert run(["sweep", *words, "seed=0", "--jobs", "1", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("1 of 1 cells", "macro-F1", f"fleet report {out} --html"):
        assert word in text
    assert (out / "results.sqlite").is_file()


@pytest.mark.usefixtures("at_once")
def test_failed_cells_are_told_of_and_the_exit_code_is_1(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "data=synthetic", "rank=1,9", "--jobs", "2", "--out", "a b"]
    assert run(words) == 1
    printed = capsys.readouterr()
    assert "1 of 2 cells" in printed.out
    assert "rank-too-large: no layer allows it" in printed.out
    assert "fleet sweep --out 'a b' --jobs 2 --retry-failed" in printed.err
    code, envelope = ask(*words)
    assert (code, envelope["error_code"]) == (1, "cells-failed")


def test_an_interrupt_exits_130_and_says_the_command_that_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(simulations.sweep.run, "execute", interrupted)
        words = ["sweep", "data=synthetic", "rank=1,2", "--jobs", "3", "--out", str(out)]
        assert run(words) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"fleet sweep --out {out} --jobs 3" in printed.err
    assert [kept.state for kept in Store(out, writable=False).kept()] == ["queued"] * 2


@pytest.mark.usefixtures("at_once")
def test_a_dry_run_says_what_is_known_and_writes_nothing(ask: Ask, tmp_path: Path) -> None:
    words = ["sweep", "data=synthetic", "rank=1,2", "seed=0,1", "--out", "out", "--jobs", "2"]
    code, envelope = ask(*words, "--dry-run")
    data = envelope["data"]
    assert (code, data["left"], data["bases"], data["seconds"]) == (0, 4, 2, None)
    assert [cell["state"] for cell in data["cells"]] == ["new"] * 4
    assert not (tmp_path / "out").exists()
    assert ask(*words)[0] == 0
    _, envelope = ask(*words, "rank=1,2,4", "--dry-run")
    data = envelope["data"]
    assert (data["left"], data["seconds"]) == (2, 2 * 2.0 / 2)


def test_help_names_the_engines_that_a_sweep_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[cohort|loop]" in text
    assert "ray" not in text


@pytest.mark.usefixtures("at_once")
def test_as_many_processes_as_this_one_may_use_cores(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    code, envelope = ask("sweep", "data=synthetic", "rank=1", "--dry-run")
    assert (code, envelope["data"]["jobs"]) == (0, 3)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "no-recipe"),
        ("absent.toml", "recipe-missing"),
        ("rank=1 recipe.toml", "usage"),
        ("rnk=1", "recipe-invalid"),
        ("rank=0", "recipe-invalid"),
        ("data=nowhere rank=1", "data-unknown"),
        ("data=synthetic base=nowhere.safetensors", "bundle-missing"),
        ("data=synthetic trace=weekly", "unknown-trace"),
        ("data=synthetic trace=steady --engine loop", "trace-engine"),
        ("data=synthetic rank=1 --engine ray", "sweep-engine"),
        ("data=synthetic rank=1 --engine ray-cohort --dry-run", "sweep-engine"),
        ("--out nothing-here", "no-sweep"),
        ("rank=1 --jobs -1", "usage"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    ask: Ask, words: str, error: str, tmp_path: Path
) -> None:
    code, envelope = ask("sweep", *words.split())
    assert envelope["error_code"] == error
    assert code in (1, 4)
    assert envelope["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_report_draws_a_table_and_names_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept_sweep(tmp_path)
    assert run(["report", str(tmp_path), "--csv", str(tmp_path / "cells.csv")]) == 0
    text = capsys.readouterr().out
    for word in ("4 of 6 cells", "0.610", "0.014", "rank-too-large", str(tmp_path / "cells.csv")):
        assert word in text.replace("\n", "")


def test_a_report_of_nothing_is_an_error(ask: Ask, tmp_path: Path) -> None:
    code, envelope = ask("report", str(tmp_path))
    assert (code, envelope["error_code"]) == (4, "nothing-to-report")

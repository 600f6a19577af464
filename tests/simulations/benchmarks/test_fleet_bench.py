from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fleet.errors import InputError, RoundError
from server.registry import open_registry
from simulations.benchmarks import fleet as bench
from simulations.benchmarks.fleet import Cycle, cycles_of, point_of
from simulations.benchmarks.fleet_processes import (
    BOX,
    DEVICES,
    Process,
    Sample,
    cpu_at,
    everyone,
    kinds_of,
    peak_of,
)
from simulations.cli.bench import app
from simulations.cli.bench_fleet import _draw
from simulations.processes import Command, Finished
from tests.server.registry.filled import FIRST, Clock, filled, run_round

OURS = 100


def processes() -> dict[int, Process]:
    def one(parent: int, command: str, cpu_s: float = 1.0) -> Process:
        return Process(parent, command, cpu_s, 10)

    return {
        1: one(0, "init"),
        OURS: one(1, "fleet bench fleet"),
        101: one(OURS, "python -m simulations.processes guard"),
        102: one(OURS, "python fleet up --devices 2 --folder /srv/b2"),
        110: one(102, "python fleet server up --folder /srv/b2/server"),
        111: one(110, "flower-superlink --superexec-auth-secret-file /srv/b2/server/secret"),
        112: one(110, "flower-superexec --superexec-auth-secret-file /srv/b2/server/secret"),
        113: one(112, "flwr-serverapp --token x"),
        114: one(110, "python -m server.service.front --folder /srv/b2/server"),
        115: one(110, "python -m server.control --folder /srv/b2/server"),
        116: one(110, "python -m server.service.keeper --folder /srv/b2/server"),
        120: one(102, "python fleet-device run --state /srv/b2/device-00000"),
        121: one(120, "flower-supernode --superlink 127.0.0.1:1"),
        122: one(121, "flower-superexec --parent-pid 121"),
        123: one(122, "flwr-clientapp --token y"),
        200: one(1, "python fleet server up --folder /srv"),
    }


def samples() -> list[Sample]:
    """A front that uses 1 s a second up to 10 s and then 3, devices twice that."""
    used = [0.0, 5.0, 10.0, 40.0, 70.0]
    return [
        Sample(1000.0 + at, {"front": cpu, DEVICES: 2 * cpu}, {"front": int(at), "keeper": 5})
        for at, cpu in zip((0.0, 5.0, 10.0, 20.0, 30.0), used, strict=True)
    ]


def test_every_process_of_a_box_is_of_one_kind_and_no_other_is_counted() -> None:
    found = kinds_of(processes(), OURS, "/srv/b2")
    by_kind: dict[str, list[str]] = {}
    for process, kind in found:
        by_kind.setdefault(kind, []).append(process.command.split()[0])
    assert {kind: len(each) for kind, each in by_kind.items()} == {
        BOX: 1,
        "supervisor": 1,
        "superlink": 1,
        "superexec": 1,
        "serverapp": 1,
        "front": 1,
        "control": 1,
        "keeper": 1,
        DEVICES: 4,
    }
    assert kinds_of(processes(), OURS, "/srv/b3") == []


def test_a_child_that_was_waited_for_is_counted_with_its_parent() -> None:
    work = "n = 0\nwhile __import__('time').process_time() < 0.4: n += 1"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", f"{parent}  # the-box"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        found = 0.0
        while found < 0.4 and process.poll() is None:
            kinds = kinds_of(everyone(), os.getpid(), "the-box")
            found = max((each.cpu_s for each, kind in kinds if kind == BOX), default=0.0)
        process.stdin.write(b"\n")
        process.stdin.close()
    assert found >= 0.4


def test_cpu_between_two_samples_lies_on_a_line_and_beyond_them_stays() -> None:
    found = [cpu_at(samples(), "front", 1000.0 + at) for at in (-5, 0, 2.5, 10, 15, 30, 99)]
    assert found == [0.0, 0.0, 2.5, 10.0, 25.0, 70.0, 70.0]
    assert cpu_at(samples(), "metrics", 1010.0) == 0.0
    assert (peak_of(samples(), "front"), peak_of(samples(), "front", "keeper")) == (30, 35)
    assert peak_of([], "front") == 0


def test_a_point_is_the_median_of_its_cycles_and_devices_are_not_the_server() -> None:
    cycles = [Cycle(1000.0 + at, 1010.0 + at, 4.0 + at, 70, 90) for at in (0.0, 10.0, 20.0)]
    point = point_of(3, cycles, samples(), (0.5, 2.25))
    assert (point.cycles, point.rounds_per_hour) == (3, 360.0)
    assert point.seconds_per_round.median == 10.0
    assert (point.collecting_seconds.median, point.collecting_seconds.highest) == (14.0, 24.0)
    assert point.server_cpu_seconds["front"] == point.server_cpu_seconds["total"] == 30.0
    assert point.devices_cpu_seconds == 60.0
    assert (point.bytes_up, point.bytes_down) == (70, 90)
    assert point.server_peak_bytes["total"] == 35


def test_the_first_round_warms_up_and_the_last_has_no_end(tmp_path: Path) -> None:
    file = tmp_path / "server" / "registry.sqlite"
    file.parent.mkdir()
    clock = Clock()
    with open_registry(file, clock=clock) as registry:
        filled(registry)
        release = FIRST
        for number in range(1, 5):
            release = run_round(registry, release, number)
            clock.now_s += 10.0 * number
        rows = registry.rounds.all()
    found = cycles_of(tmp_path)
    opened = [row.opened.at_s for row in rows]
    assert [each.opened_s for each in found] == opened[1:3]
    assert [each.until_s for each in found] == opened[2:4]
    assert [each.until_s - each.opened_s for each in found] == [20.0, 30.0]
    assert {each.collecting_s for each in found} == {0.0}


def test_a_fleet_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "execute", lambda *args, **options: Finished(1, 0.1))
    with pytest.raises(RoundError, match=r"3 agents: exit code 1; see .*3-agents\.txt"):
        bench._measured(tmp_path / "base", 3, tmp_path, 4, 8)


def test_the_log_of_a_fleet_that_fails_is_still_there_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "obtain_base", lambda *args: None)
    monkeypatch.setattr(bench, "save_base", lambda *args: None)

    def fails(command: Command, folder: Path, log: Path, timeout_s: float) -> Finished:
        log.write_text("why")
        return Finished(1, 0.1)

    monkeypatch.setattr(bench, "execute", fails)
    result = CliRunner().invoke(app, ["fleet", "--agents", "3"])
    assert isinstance(result.exception, RoundError)
    assert "--out FOLDER" in result.exception.hint
    log = Path(result.exception.message.rpartition("see ")[2])
    try:
        assert log.read_text() == "why"
    finally:
        shutil.rmtree(log.parent)


@pytest.mark.parametrize("given", [True, False])
def test_a_temporary_folder_is_gone_after_a_bench_and_a_given_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen: list[Path] = []

    def done(sizes: list[int], folder: Path, **options: Any) -> dict[str, Any]:
        seen.append(folder)
        (folder / "log").touch()
        return {}

    monkeypatch.setattr(bench, "run", done)
    flags = ["--out", str(tmp_path / "out")] if given else []
    result = CliRunner().invoke(app, ["fleet", *flags, "--format", "json"])
    assert result.exit_code == 0
    assert seen[0].exists() is given
    assert CliRunner().invoke(app, ["fleet", *flags, "--format", "json"]).exit_code == given


def test_the_table_names_every_kind_that_used_time() -> None:
    cycles = [Cycle(1000.0, 1010.0, 4.0, 70, 90)]
    point: dict[str, Any] = asdict(point_of(3, cycles, samples(), (0.5, 2.25)))
    console = Console(width=140, record=True, file=io.StringIO())
    _draw(console, {"command": "c", "machine": "m", "versions": {"v": "1"}, "points": [point]})
    text = console.export_text()
    for row in ("rounds per hour", "per round: front", "per round: server", "0.5 to 2.2"):
        assert row in text
    assert "metrics" not in text


@pytest.mark.parametrize("agents", ["0", "33", "three", ""])
def test_sizes_that_no_machine_carries_are_refused(agents: str) -> None:
    result = CliRunner().invoke(app, ["fleet", "--agents", agents])
    assert isinstance(result.exception, InputError)
    assert result.exception.code == "fleet-sizes"

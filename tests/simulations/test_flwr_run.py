"""``--engine ray``: Flower's own runtime behind the main job."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import tomllib

from fleet.errors import RoundError, UnavailableError
from server.store import RunFolder
from simulations import flwr_run
from simulations.engines import Engine
from simulations.placed import placed
from simulations.processes import Command, Finished
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.simulations.tiny_fleet import MakeConfig


class Notes(Silent):
    """Keeps what a progress is told of rounds."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, note: str = "") -> None:
        self.notes.append(note)


@pytest.mark.e2e
def test_a_run_in_flowers_runtime_ends_in_the_releases_of_the_loop(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    reports, notes = {}, Notes()
    for engine in (Engine.loop, Engine.ray):
        config = make_config(rounds=1, out=str(tmp_path / engine.value))
        run = Run(config, ("head",), {"head": 0.1}, engine, workers=int(engine is Engine.ray))
        reports[engine] = simulate(open_run(run, resume=False), notes)["methods"]["head"]
    here, there = reports[Engine.loop], reports[Engine.ray]
    # Flower's ids of runs and messages are random and do not always take as many bytes.
    for way in ("wire_bytes_up", "wire_bytes_down"):
        assert there.pop(way) == pytest.approx(here.pop(way), rel=0.02)
    del here["seconds"], there["seconds"]
    assert there == here
    assert notes.notes[-1] == "round 1/1"
    assert (tmp_path / "ray" / "head" / "merged.safetensors").is_file()


def test_the_command_is_one_that_a_user_could_give(make_config: MakeConfig, tmp_path: Path) -> None:
    config = placed(make_config(out=str(tmp_path / "out"), method="head", shift="gain:10"))
    command = flwr_run.flwr_command(config, tmp_path, 7, 3)
    line = shlex.join(command.words)
    assert "flwr run " in line
    assert "num-supernodes=7 client-resources-num-cpus=1 init-args-num-cpus=3" in line
    written = tomllib.loads(Path(command.words[-1]).read_text(encoding="utf-8"))
    assert written == config.for_flower()
    assert Path(config.data).is_absolute()


def test_a_run_that_leaves_no_release_is_told_with_what_flower_printed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(command: Command, cwd: Path, log: Path, timeout_s: float) -> Finished:
        log.write_text("the server app fell over", encoding="utf-8")
        return Finished(0, 1.0)

    monkeypatch.setattr(flwr_run, "execute", execute)
    config = make_config(out=str(tmp_path))
    run = Run(config, ("core",), {}, Engine.ray)
    with pytest.raises(RoundError, match="the server app fell over") as caught:
        simulate(open_run(run, resume=False), Silent())
    assert caught.value.code == "flwr-run"


def test_without_a_checkout_there_is_no_app_to_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flwr_run, "CHECKOUT", tmp_path)
    with pytest.raises(UnavailableError, match="flwr run needs a checkout"):
        simulate(
            open_run(
                Run(make_config(out=str(tmp_path / "o")), ("core",), {}, Engine.ray), resume=False
            ),
            Silent(),
        )
    assert RunFolder(tmp_path / "o" / "core").round_numbers() == []

"""Simulated fleets whose plans ask for packed updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.agent.residuals import Residuals
from fleet.errors import FleetError, InputError, RoundError, StorageError
from fleet.federate.compress import packed_bytes
from server.store import RunFolder
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.remembering import RememberingFolder
from simulations.simulate import Run, open_run, simulate
from tests.fleet.federate.factories import make_plan
from tests.simulations.test_simulate import Interrupting
from tests.simulations.tiny_fleet import MakeConfig

ROUNDS = 3


def begun(make_config: MakeConfig, out: Path, engine: Engine) -> Run:
    config = make_config(out=str(out), rounds=ROUNDS, compression="int4")
    workers = 1 if engine is Engine.cohort else 0
    return open_run(Run(config, ("core",), {}, engine, workers), resume=False)


@pytest.fixture(scope="module")
def wholes(
    make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[Engine, tuple[Path, dict[str, Any]]]:
    found = {}
    for engine in (Engine.cohort, Engine.loop):
        out = tmp_path_factory.mktemp("compressed") / engine.value
        found[engine] = (out, simulate(begun(make_config, out, engine), Silent()))
    return found


@pytest.mark.parametrize("engine", [Engine.cohort, Engine.loop])
def test_every_update_is_packed_and_accepted_and_its_bytes_are_counted(
    wholes: dict[Engine, tuple[Path, dict[str, Any]]], engine: Engine
) -> None:
    out, report = wholes[engine]
    size = report["methods"]["core"]["trained_parameters"]
    for record in RunFolder(out / "core").rounds():
        traffic = record["traffic"]
        assert record["refused"] == []
        assert record["plan"]["compression"] == "int4"
        assert traffic["bytes_up"] == traffic["messages_up"] * packed_bytes(size, "int4")
        assert traffic["bytes_down"] == traffic["messages_down"] * 4 * size


@pytest.mark.parametrize("engine", [Engine.cohort, Engine.loop])
@pytest.mark.parametrize("after", [5, 8])
def test_an_interrupted_run_goes_on_with_what_was_lost_and_ends_in_the_same_digest(
    wholes: dict[Engine, tuple[Path, dict[str, Any]]],
    make_config: MakeConfig,
    tmp_path: Path,
    engine: Engine,
    after: int,
) -> None:
    run = begun(make_config, tmp_path, engine)
    with pytest.raises(KeyboardInterrupt):
        simulate(run, Interrupting(after))
    done = len(RunFolder(tmp_path / "core").round_numbers())
    assert 0 < done < ROUNDS
    assert [p.name for p in (tmp_path / "core" / "residuals").iterdir()] == [
        f"{done:06d}.safetensors"
    ]
    resumed = simulate(open_run(Run(run.config, ("core",), {}), resume=True), Silent())
    assert resumed["release"] == wholes[engine][1]["release"]


def test_without_what_was_lost_the_digest_is_another(
    wholes: dict[Engine, tuple[Path, dict[str, Any]]],
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Residuals, "put", lambda *_: None)
    run = begun(make_config, tmp_path, Engine.cohort)
    assert simulate(run, Silent())["release"] != wholes[Engine.cohort][1]["release"]


@pytest.mark.parametrize(
    ("engine", "trace"),
    [(Engine.ray, ""), (Engine.ray_cohort, ""), (Engine.cohort, "steady")],
)
def test_where_residuals_would_be_lost_compression_is_refused(
    make_config: MakeConfig, tmp_path: Path, engine: Engine, trace: str
) -> None:
    config = make_config(out=str(tmp_path / "x"), compression="int8", trace=trace)
    with pytest.raises(InputError) as refused:
        open_run(Run(config, ("core",), {}, engine), resume=False)
    assert refused.value.code == "compression-engine"
    assert not (tmp_path / "x").exists()


def test_a_device_whose_residual_nobody_keeps_declines_with_the_reason() -> None:
    with pytest.raises(RoundError) as declined:
        Residuals().of(make_plan(compression="int8"), 0)
    assert declined.value.code == "no-residuals"
    assert Residuals().of(make_plan(), 0) is None


def test_damaged_residuals_are_no_start(tmp_path: Path) -> None:
    folder = RememberingFolder(tmp_path, Residuals())
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "000001.json").write_text("{}")
    assert folder.round_numbers() == [1]
    for content in (None, b"", b"no tensors"):
        if content is not None:
            (tmp_path / "residuals").mkdir(exist_ok=True)
            (tmp_path / "residuals" / "000001.safetensors").write_bytes(content)
        with pytest.raises(FleetError) as refused:
            RememberingFolder(tmp_path, Residuals())
        assert isinstance(refused.value, StorageError)
        assert refused.value.code == "residuals-damaged"

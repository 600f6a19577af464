from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import InputError
from fleet.federate.releases import load_release
from simulations.engines import LARGEST_WORKERS, Engine
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.simulations.tiny_fleet import MakeConfig


def released(folder: Path) -> np.ndarray[Any, Any]:
    newest = sorted((folder / "core" / "releases").glob("*.safetensors"))[-1]
    return load_release(newest).state.flat()


def run_with(engine: Engine, make_config: MakeConfig, out: Path, **changes: Any) -> dict[str, Any]:
    config = make_config(out=str(out), **changes)
    return simulate(open_run(Run(config, ("core",), {}, engine), resume=False), Silent())


@pytest.mark.parametrize("changes", [{}, {"devices": 7, "windows_per_device": 9, "cohort": 5}])
def test_a_cohort_ends_where_the_loop_ends_up_to_rounding(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    loop = run_with(Engine.loop, make_config, tmp_path / "loop", **changes)
    cohort = run_with(Engine.cohort, make_config, tmp_path / "cohort", **changes)
    one, other = released(tmp_path / "loop"), released(tmp_path / "cohort")
    assert np.linalg.norm(one) > 0
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(one)
    for bytes_of in ("bytes_up", "bytes_down", "wire_bytes_up", "wire_bytes_down"):
        counted = loop["methods"]["core"][bytes_of]
        assert cohort["methods"]["core"][bytes_of] == pytest.approx(counted, rel=1e-3)


def test_a_run_keeps_the_engine_that_it_began_with(make_config: MakeConfig, tmp_path: Path) -> None:
    run_with(Engine.cohort, make_config, tmp_path / "run")
    again = open_run(Run(make_config(out=str(tmp_path / "run")), ("core",), {}), resume=True)
    assert again.engine is Engine.cohort


def test_two_runs_of_a_cohort_end_in_the_same_digest(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first = run_with(Engine.cohort, make_config, tmp_path / "first")
    second = run_with(Engine.cohort, make_config, tmp_path / "second")
    assert first["methods"]["core"]["release"] == second["methods"]["core"]["release"]


@pytest.mark.parametrize(
    ("engine", "workers", "address", "trace", "code"),
    [
        (Engine.loop, 2, "", "", "workers"),
        (Engine.cohort, -1, "", "", "workers"),
        (Engine.cohort, LARGEST_WORKERS + 1, "", "", "workers"),
        (Engine.cohort, 0, "head:6379", "", "ray-address"),
        (Engine.ray, 0, "", "steady", "trace-engine"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_is_computed(
    make_config: MakeConfig,
    tmp_path: Path,
    engine: Engine,
    workers: int,
    address: str,
    trace: str,
    code: str,
) -> None:
    config = make_config(out=str(tmp_path / "run"), trace=trace)
    with pytest.raises(InputError) as refused:
        open_run(Run(config, ("core",), {}, engine, workers, address), resume=False)
    assert refused.value.code == code
    assert not (tmp_path / "run").exists()


def test_hours_to_a_target_need_a_trace(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(out=str(tmp_path / "run"), target_f1=0.9)
    with pytest.raises(InputError, match="needs a trace"):
        open_run(Run(config, ("core",), {}), resume=False)

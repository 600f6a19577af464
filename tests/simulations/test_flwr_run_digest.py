"""One experiment through two grids: ``flwr run`` with real processes, and in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.federate.releases import load_release
from simulations.engines import Engine
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.flower_processes import Setting, flower_simulation
from tests.simulations.tiny_fleet import MakeConfig

# What the default suite has of this: a run by `--engine ray`, which is given its base.
pytestmark = [pytest.mark.e2e, pytest.mark.deployment]

APP = Path(__file__).resolve().parents[2]
ROUNDS = 2


def test_flwr_run_ends_in_the_release_of_the_in_process_simulation(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    # No base is given: both sides train one, so that the whole way is compared.
    config = make_config(rounds=ROUNDS, base="", base_epochs=1, out=str(tmp_path / "here"))
    report = simulate(open_run(Run(config, ("core",), {}, Engine.loop), resume=False), Silent())
    out = tmp_path / "flwr"
    run_config: dict[str, Setting] = {**config.for_flower(), "out": str(out)}
    with flower_simulation({"OMP_NUM_THREADS": "1"}) as simulation:
        log = simulation.flwr_run(APP, run_config, report["devices"], 150)
        superlink = simulation.log_path.read_text(encoding="utf-8", errors="replace")
    assert not simulation.processes()
    last = out / "core" / "releases" / f"{ROUNDS:06d}.safetensors"
    assert last.is_file(), f"{log}\n{superlink}"
    release = load_release(last)
    assert release.base == report["base"]["digest"]
    assert {"number": release.number, "digest": release.digest} == report["release"]
    there, here = (folder / "core" / "merged.safetensors" for folder in (out, tmp_path / "here"))
    assert there.read_bytes() == here.read_bytes()

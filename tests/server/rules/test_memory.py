from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from clients import bridge
from fleet.adapt.base import Base
from fleet.errors import MismatchError, StorageError
from fleet.federate.releases import Release
from fleet.federate.rule import read_rule
from fleet.har.population import Population
from fleet.peft.core import core
from server.app import Surroundings, run_rounds
from server.rules.memory import NOTHING, Memory, load_memory, save_memory
from server.store import RunFolder
from simulations.inprocess import InProcessGrid
from tests.simulations.tiny_fleet import RATE, MakeConfig

MEMORY = Memory.of("adam:0.01", 3, {"second": np.arange(4.0), "first": np.ones(4) / 3})
RELEASE = "a" * 64


def test_a_memory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save_memory(MEMORY, RELEASE, tmp_path / "m.safetensors")
    back = load_memory(tmp_path / "m.safetensors", RELEASE)
    assert (back.digest, back.rule, back.steps) == (MEMORY.digest, "adam:0.01", 3)
    assert back.arrays["first"].dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        back.arrays["first"][0] = 9


def test_a_memory_s_digest_covers_rule_steps_and_bits() -> None:
    others = [
        Memory.of("adam:0.02", 3, MEMORY.arrays),
        Memory.of("adam:0.01", 4, MEMORY.arrays),
        Memory.of("adam:0.01", 3, {**MEMORY.arrays, "first": np.ones(4) / 3 + 1e-16}),
        NOTHING,
    ]
    assert len({each.digest for each in [MEMORY, *others]}) == 5


def test_a_memory_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_memory(MEMORY, RELEASE, path)
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    save_file({"first": np.ones(4), "second": np.ones(4)}, path, header)
    with pytest.raises(StorageError, match="carries digest") as refused:
        load_memory(path, RELEASE)
    assert refused.value.code == "memory-damaged"


def test_a_memory_beside_another_release_is_refused(tmp_path: Path) -> None:
    save_memory(MEMORY, RELEASE, tmp_path / "m.safetensors")
    with pytest.raises(MismatchError) as refused:
        load_memory(tmp_path / "m.safetensors", "b" * 64)
    assert refused.value.code == "other-memory"


Run = Any


@pytest.fixture
def run(tiny_base: Base, tiny_people: Population, make_config: MakeConfig) -> Run:
    def run(folder: Path, rule: str = "adam:0.05", rounds: int = 3) -> Release:
        config = make_config(rounds=rounds, rule=rule)
        grid = InProcessGrid(bridge.app, 3, run_config=config.for_flower())
        around = Surroundings(grid.clock, grid.wait)
        kept = RunFolder(folder)
        return run_rounds(grid, config, tiny_base, tiny_people, core, RATE, kept, around)

    return run


@pytest.mark.parametrize("rule", ["momentum:0.9", "adam:0.05", "yogi:0.05"])
def test_a_run_that_was_cut_off_goes_on_with_its_moments(
    run: Run, tmp_path: Path, rule: str
) -> None:
    whole = run(tmp_path / "whole", rule)
    run(tmp_path / "cut", rule, 1)
    resumed = run(tmp_path / "cut", rule)
    assert resumed.digest == whole.digest
    names = [f"memory/{number:06d}.safetensors" for number in (1, 2, 3)]
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_memory_left_by_a_round_that_does_not_count_is_made_again(
    run: Run, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", rounds=2)
    (tmp_path / "cut" / "rounds" / "000002.json").unlink()
    assert run(tmp_path / "cut").digest == whole.digest


def test_a_run_whose_moments_are_gone_does_not_go_on_without_them(run: Run, tmp_path: Path) -> None:
    run(tmp_path, rounds=1)
    (tmp_path / "memory" / "000001.safetensors").unlink()
    with pytest.raises(StorageError) as refused:
        run(tmp_path)
    assert refused.value.code == "bundle-missing"


def test_a_run_that_goes_on_by_another_rule_starts_with_no_memory(run: Run, tmp_path: Path) -> None:
    one = run(tmp_path, "adam:0.05", 1)
    folder = RunFolder(tmp_path)
    assert folder.memory(one, read_rule("adam:0.05")).steps == 1
    for other in ("adam:0.06", "yogi:0.05", "mean"):
        assert folder.memory(one, read_rule(other)) is NOTHING
    run(tmp_path, "momentum:0.9", 2)
    assert load_memory(tmp_path / "memory" / "000002.safetensors", _digest(folder)).steps == 1


def _digest(folder: RunFolder) -> str:
    return str(folder.rounds()[-1]["release"][1])


def test_a_rule_without_memory_leaves_no_file(run: Run, tmp_path: Path) -> None:
    run(tmp_path, "median", 1)
    assert not (tmp_path / "memory").exists()
    (record,) = RunFolder(tmp_path).rounds()
    assert record["rule"] == {"name": "median"}

"""Law: cut off at any write, fsync, rename or removal, what is served is whole and verified."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.agent.serving.folder import CURRENT
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from clients.agent.serving.whole import open_served
from fleet.adapt.base import Base
from fleet.errors import StorageError
from fleet.federate.releases import Release
from tests.clients.agent.serving.effects import (
    SCENARIOS,
    CutOffError,
    Effects,
    cut_off,
    disk_full,
    disk_read_only,
)
from tests.clients.agent.serving.factories import probabilities_of, promoted, raw_windows

ROOT = Path(__file__).resolve().parents[4]
Answer = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
# What may be served once a scenario was cut off: release numbers, the old and the new.
ALLOWED = {"install": {0}, "promote": {2, 3}, "roll_back": {2, 1}, "start": {1}}


@pytest.fixture(scope="module")
def templates(
    installed: Path,
    base_file: Path,
    releases: list[Release],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The state directory that each scenario starts from; ``install`` starts from none."""
    root = tmp_path_factory.mktemp("templates")
    shutil.copy(base_file, root / "base.safetensors")
    served = Path(shutil.copytree(installed, root / "served"))
    for number in (1, 2):
        promoted(served, releases[number])
    Serving(served).take(releases[3])
    damaged = Path(shutil.copytree(served, root / "damaged"))
    folder = Serving(damaged).folder
    pointer = folder.pointer(CURRENT)
    assert pointer is not None
    folder.served_file(pointer.name).write_bytes(b"half")
    (folder.served / ".x.safetensors.1-1.tmp").write_bytes(b"half")
    return {"install": root / "none", "promote": served, "roll_back": served, "start": damaged}


def fresh(templates: dict[str, Path], scenario: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    template = templates[scenario]
    base = template.parent / "base.safetensors"
    if not (folder.parent / base.name).exists():
        shutil.copy(base, folder.parent / base.name)
    state = folder / "state"
    if template.exists():
        shutil.copytree(template, state)
    return state


@pytest.fixture(scope="module")
def answers(base: Base, releases: list[Release]) -> list[Answer]:
    """What each release answers to the windows that every check asks about."""
    return [probabilities_of(base, release, raw_windows(4)).numpy() for release in releases]


def check_after(
    state: Path, scenario: str, answers: list[Answer], go_on: Release | None = None
) -> None:
    """Readers before and after start-up answer as an allowed release; start-up ends whole."""
    reader = None
    if (state / "model" / "base.safetensors").exists():
        reader = DeviceModel(state, retry_s=0)
    elif scenario == "install":
        SCENARIOS[scenario](state)
    serving = Serving(state)
    recovery = recover(serving)
    assert recovery.served.number in ALLOWED[scenario]
    assert serving.served == recovery.served
    open_served(serving.folder.served_file(recovery.served.name), recovery.served)
    for model in (reader, DeviceModel(state)):
        if model is not None:
            _, got = model.predict(raw_windows(4))
            assert model.served.number in ALLOWED[scenario]
            np.testing.assert_allclose(got, answers[model.served.number], rtol=1e-3, atol=1e-5)
            assert model.problem == ""
    assert list(state.rglob("*.tmp")) == []
    if go_on is not None:
        assert serving.promote(serving.take(go_on)).swapped


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_at_any_effect_leaves_old_or_new_whole(
    scenario: str,
    templates: dict[str, Path],
    answers: list[Answer],
    releases: list[Release],
    tmp_path: Path,
) -> None:
    for at in range(1, 100):
        state = fresh(templates, scenario, tmp_path / str(at))
        effects = Effects(at, cut_off)
        with pytest.MonkeyPatch.context() as patched:
            effects.hook(patched)
            try:
                SCENARIOS[scenario](state)
            except CutOffError:
                pass
            else:
                assert not effects.reached
        check_after(state, scenario, answers, releases[4] if at % 4 == 1 else None)
        if not effects.reached:
            break
        shutil.rmtree(state)
    assert effects.count > 8


@pytest.mark.parametrize(
    ("scenario", "fails"),
    [("install", disk_full), ("promote", disk_read_only), ("start", disk_full)],
)
def test_an_effect_that_fails_leaves_old_or_new_whole_and_is_a_reason(
    scenario: str,
    fails: object,
    templates: dict[str, Path],
    answers: list[Answer],
    releases: list[Release],
    tmp_path: Path,
) -> None:
    for at in range(1, 100):
        state = fresh(templates, scenario, tmp_path / str(at))
        effects = Effects(at, fails)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patched:
            effects.hook(patched)
            try:
                SCENARIOS[scenario](state)
            except StorageError:
                # Only what was never served before has nothing to go on with.
                assert scenario == "install"
        check_after(state, scenario, answers, releases[4] if at % 4 == 1 else None)
        if not effects.reached:
            return
        shutil.rmtree(state)


@pytest.mark.parametrize("scenario", ["promote", pytest.param("start", marks=pytest.mark.faults)])
def test_a_process_killed_at_any_effect_leaves_old_or_new_whole(
    scenario: str,
    templates: dict[str, Path],
    answers: list[Answer],
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.clients.agent.serving.effects"),
            *(str(templates[scenario]), str(tmp_path), scenario),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed > 8
    for at in range(1, killed + 2):
        check_after(tmp_path / str(at), scenario, answers)


def test_a_disk_that_is_full_for_good_goes_on_serving_the_old(
    templates: dict[str, Path], releases: list[Release], tmp_path: Path
) -> None:
    state = fresh(templates, "promote", tmp_path / "full")
    serving, model = Serving(state), DeviceModel(state)
    kept = serving.held.kept(3)
    with pytest.MonkeyPatch.context() as patched:

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("fleet.files._write_all", refuse)
        outcome = serving.promote(kept)
        assert (outcome.swapped, outcome.reason) == (False, "disk-full")
        assert outcome.served is not None
        assert outcome.served.number == 2
        recovery = recover(serving)
        assert (recovery.source, recovery.served.number) == ("current", 2)
        assert any("could not be noted" in problem for problem in recovery.problems)
    model.predict(raw_windows(1))
    assert model.served.number == 2
    assert serving.promote(kept).swapped

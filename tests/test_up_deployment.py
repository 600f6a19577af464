"""A fleet in a box as a newcomer starts it: one command, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import load_base
from fleet.adapt.digest import digest_arrays
from fleet.errors import FleetError
from fleet.federate.served import merge_release
from fleet.har import sources
from server.registry import open_registry
from simulations.box.wanted import Wanted
from simulations.engines import Engine
from simulations.processes import end, processes_of
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.flower_processes import free_port, program
from tests.terminal import Terminal, section, surroundings, transcript

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(1800)]

MARKER = "COREFLEET_TEST_BOX"
DEVICES, ROUNDS, WINDOWS, RATE = 2, 2, 40, 0.1
LIMIT_S = 600.0
PAGE = Path(__file__).parents[1] / "docs" / "operate.md"
TITLE = "A fleet in a box"
PAGES_PORT = "9443"
PRINTED = "up.txt"
# Ten processes of devices end one after the other.
END_LIMIT_S = 240.0


def test_a_fleet_in_a_box_ends_in_the_release_of_the_simulation_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    mark = uuid.uuid4().hex
    # Sockets have short paths, and pytest's folders are deep.
    folder = Path("/tmp") / f"box-{mark[:8]}"
    words = ["up", "--devices", str(DEVICES), "--data", "synthetic", "--rounds", str(ROUNDS)]
    words += ["--windows-per-device", str(WINDOWS), "--base-epochs", "3", "--rate", str(RATE)]
    words += ["--folder", str(folder), "--format", "json"]
    try:
        done = subprocess.run(
            [program("fleet"), *words],
            env={**os.environ, MARKER: mark},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        left = processes_of(mark, MARKER)
    finally:
        end(mark, variable=MARKER)
    logs = "\n".join(path.read_text() for path in sorted(folder.glob("log/*.log")))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{logs}"
    assert left == set()
    data = json.loads(done.stdout)["data"]
    assert [each["number"] for each in data["rounds"]] == [1, 2]
    assert {(each["accepted"], each["refused"]) for each in data["rounds"]} == {(DEVICES, 0)}
    assert all(each["bytes_up"] and each["bytes_down"] for each in data["rounds"])
    assert len(data["devices"]) == DEVICES
    assert {each["release"] for each in data["devices"]} == {ROUNDS}
    assert len({each["digest"] for each in data["devices"]}) == 1
    assert all(0 < each["macro_f1"] <= 1 for each in data["devices"])

    wanted = Wanted(DEVICES, "synthetic", ROUNDS, rate=RATE, windows=WINDOWS, base_epochs=3)
    here = wanted.config().model_copy(
        update={"base": str(folder / "base.safetensors"), "out": str(tmp_path / "here")}
    )
    run = Run(here, ("core",), {"core": RATE}, Engine.loop)
    report = simulate(open_run(run, resume=False), Silent())
    with open_registry(folder / "server" / "registry.sqlite", clock=lambda: 0.0) as registry:
        assert [each.digest for each in registry.bases.all()] == [
            load_base(folder / "base.safetensors").digest
        ]
        assert registry.audit.verify().seq > 0
    assert data["release"] == report["release"]


def test_the_transcript_of_the_docs_is_what_an_operator_sees_on_hapt() -> None:
    try:
        sources.find("hapt")
    except FleetError as error:
        pytest.skip(f"HAPT is not on this machine: {error.message}")
    text = section(PAGE, TITLE).replace(PAGES_PORT, str(free_port()))
    (start,) = [line for line in text.splitlines() if line.startswith("fleet up ")]
    served: list[tuple[int, str]] = []
    with box_of(start) as (terminal, box, mark):
        for line in transcript(text):
            terminal.type(line, LIMIT_S, box)
            if line.command.startswith("fleet device list"):
                served.append(served_by_all(terminal))
        assert len(terminal.said) > 10
        listed = data_of(terminal, "fleet release list")["releases"]
        digests = {each["number"]: each["digest"] for each in listed}
        shown = data_of(terminal, "fleet release show 2")["release"]
        rows = data_of(terminal, "fleet audit list --subject 'release 2'")["rows"]
        box.send_signal(signal.SIGINT)
        box.wait(END_LIMIT_S)
        printed, left = (terminal.folder / PRINTED).read_text(), processes_of(mark, MARKER)
    assert (box.returncode, left) == (130, set()), printed
    assert "release 2 · " + digests[2][:12] in printed
    assert shown["current"]
    assert shown["digest"] == digests[2] != digests[3]
    # By the operator of this machine, by Anna from elsewhere, and nobody with a viewer's right.
    assert [row["verb"] for row in rows].count("release.promote") == 2
    assert rows[-1]["actor"] == "anna"
    assert "vic" not in {row["actor"] for row in rows}
    assert [number for number, _ in served] == [2, 3, 2]
    assert served[0] == served[2]
    assert served[0][1] != served[1][1]


@contextmanager
def box_of(start: str) -> Iterator[tuple[Terminal, subprocess.Popen[str], str]]:
    """Start what a page starts; give a terminal beside it, its process and its mark."""
    mark = uuid.uuid4().hex
    # Sockets have short paths, and pytest's folders are deep.
    folder = Path("/tmp") / f"box-{mark[:8]}"
    folder.mkdir(mode=0o700)
    environment = surroundings(Path(program("fleet")).parent, {MARKER: mark})
    printed = folder / PRINTED
    try:
        with (
            printed.open("w") as output,
            subprocess.Popen(
                shlex.split(start, comments=True),
                executable=program("fleet"),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            ) as box,
        ):
            try:
                yield Terminal(folder, environment), box, mark
            finally:
                box.kill()
    except BaseException as error:
        error.add_note(f"{start}\n{printed.read_text()}")
        raise
    finally:
        end(mark, variable=MARKER)
        shutil.rmtree(folder, ignore_errors=True)


def served_by_all(terminal: Terminal) -> tuple[int, str]:
    """Return number and digest of what every device says it serves; see that both fit."""
    listed = data_of(terminal, "fleet device list")["devices"]
    assert {each["link"] for each in listed} == {"online"}
    box = terminal.folder / "box"
    with open_registry(box / "server" / "registry.sqlite", clock=lambda: 0.0) as registry:
        said = {(each.serves_release, each.serves) for each in registry.devices.all()}
        ((number, digest),) = said
        release = registry.releases.load(number)
    assert [each["serves"] for each in listed] == [number] * 5
    assert digest == digest_arrays(merge_release(load_base(box / "base.safetensors"), release))
    return number, digest


def data_of(terminal: Terminal, command: str) -> dict[str, Any]:
    code, printed = terminal.run(f"{command} --format json")
    assert code == 0, printed
    data: dict[str, Any] = json.loads(printed)["data"]
    return data

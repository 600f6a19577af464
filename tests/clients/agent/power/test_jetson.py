"""Lines of ``tegrastats`` as public sources quote them; sources and changes are named."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.agent.power import jetson
from clients.agent.power.jetson import jtop, parse_tegrastats, tegrastats

# The parts are named in NVIDIA's appendix "tegrastats Utility" (L4T 32.5 development guide:
# docs.nvidia.com/jetson/archives/l4t-archived/l4t-325/, AppendixTegraStats.html).
# Orin Nano, verbatim: github.com/henrygd/beszel, agent/gpu_test.go, case "orin nano".
ORIN_NANO = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU"
    " [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C"
    " soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW"
    " VDD_SOC 1475mW/1475mW"
)
# Orin with six cores, busy, verbatim: the same file, case "more valid data".
ORIN_BUSY = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU"
    " [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC"
    " off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C"
    " gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW"
    " VDD_SOC 2817mW/2817mW"
)
# Nano, verbatim: quoted as "Tegrastats example output" in a collector on GitHub (JetPack 4's form,
# milliwatts without a unit); the same PMIC@100C stands in every line of that generation we found.
NANO = (
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU"
    " [24%@1224,15%@1224,13%@1224,10%@1224] EMC_FREQ 0% GR3D_FREQ 0% PLL@21C CPU@25C PMIC@100C"
    " GPU@23.5C AO@33.5C thermal@24.5C POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529"
)
# AGX Orin: the rails are those of a line quoted in a public log parser, which leaves cores and some
# sensors out; tj, and cv0 as a block without power shows it, were filled in by us.
AGX_ORIN = (
    "01-30-2026 18:09:55 RAM 14384/62841MB (lfb 303x4MB) SWAP 0/31420MB (cached 0MB) CPU"
    " [2%@729,3%@729,off] GR3D_FREQ 0% cpu@48.75C tj@49.5C cv0@-256C VDD_GPU_SOC 3192mW/3192mW"
    " VDD_CPU_CV 1596mW/1596mW VIN_SYS_5V0 5048mW/5048mW"
)
# One value per rail, no mean: beszel's case "valid data" with its rail renamed by us.
NO_MEAN = "11-14-2024 22:54:33 RAM 4300/30698MB GR3D_FREQ 45% tj@52.468C VDD_IN 2171mW"


@pytest.mark.parametrize(
    ("line", "celsius", "watts"),
    [
        pytest.param(ORIN_NANO, 50.25, 4.824, id="orin-nano"),
        pytest.param(ORIN_BUSY, 53.968, 12.479, id="orin-busy"),
        pytest.param(NANO, 33.5, 2.545, id="nano"),
        pytest.param(AGX_ORIN, 49.5, None, id="agx-orin"),
        pytest.param(NO_MEAN, 52.468, 2.171, id="no-mean"),
        pytest.param("", None, None, id="empty"),
        pytest.param("tegrastats: command failed", None, None, id="error"),
    ],
)
def test_a_recorded_line_gives_the_hottest_trusted_sensor_and_the_boards_input(
    line: str, celsius: float | None, watts: float | None
) -> None:
    assert parse_tegrastats(line) == {"temperature_c": celsius, "power_w": watts}


@given(st.text())
def test_no_line_breaks_the_parser(line: str) -> None:
    assert set(parse_tegrastats(line)) == {"temperature_c", "power_w"}


def test_tegrastats_is_asked_for_one_line_in_bounded_time() -> None:
    asked: list[tuple[Sequence[str], float]] = []

    def line_of(command: Sequence[str], limit_s: float) -> str:
        asked.append((command, limit_s))
        return NANO

    assert tegrastats(line_of)["power_w"] == 2.545
    assert asked == [(("tegrastats", "--interval", "500"), jetson.TEGRASTATS_LIMIT_S)]
    assert tegrastats(lambda command, limit_s: None) == {}


class FakeJtop:
    """What jtop's client shows: ``temperature`` and ``power`` as in jetson-stats' core modules."""

    temperature: ClassVar[dict[str, Any]] = {
        "cpu": {"temp": 47.5, "online": True},
        "tj": {"temp": 48.0, "online": True},
        "cv0": {"temp": -256, "online": False},
        "PMIC": {"temp": 100.0},
    }
    power: ClassVar[dict[str, Any]] = {
        "rail": {"VDD_CPU_GPU_CV": {"power": 524, "avg": 524}},
        "tot": {"name": "VDD_IN", "power": 3311, "avg": 3311},
    }

    def __enter__(self) -> FakeJtop:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ok(self) -> bool:
        return True


class Summed(FakeJtop):
    power: ClassVar[dict[str, Any]] = {"rail": {}, "tot": {"power": 9000, "avg": 9000}}


class NotReady(FakeJtop):
    def ok(self) -> bool:
        return False


def test_jtop_gives_temperature_and_power() -> None:
    assert jtop(FakeJtop) == {"temperature_c": 48.0, "power_w": 3.311}


def test_a_sum_of_some_rails_is_not_taken_for_the_boards_power() -> None:
    assert jtop(Summed)["power_w"] is None


def test_a_service_that_is_not_ready_knows_nothing() -> None:
    assert jtop(NotReady) == {}


def test_a_service_that_hangs_knows_nothing_after_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jetson, "JTOP_LIMIT_S", 0.05)
    leave = threading.Event()

    def connect() -> FakeJtop:
        leave.wait(5)
        return FakeJtop()

    start = time.monotonic()
    assert jtop(connect) == {}
    assert time.monotonic() - start < 2
    leave.set()

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from clients.agent.intake import spec_of
from clients.agent.intake.spec import factor_of
from clients.agent.store import SplitRule
from fleet.errors import InputError
from tests.clients.agent.intake.recordings import small_spec


@dataclass(frozen=True)
class Base:
    channels: tuple[tuple[str, str], ...] = (("acc_x", "m/s^2"), ("gyro_x", "rad/s"))
    rate_hz: float = 50.0
    window: int = 128
    stride: int = 64


def test_a_sensor_that_has_the_bases_columns_is_left_as_it_is() -> None:
    spec = spec_of(Base())
    assert spec.columns == ("acc_x", "gyro_x")
    assert spec.factors == (1.0, 1.0)
    assert (spec.rate_hz, spec.window, spec.stride) == (50.0, 128, 64)


@pytest.mark.parametrize("stride", [1, 16, 64, 128])
def test_blocks_hold_out_a_quarter_however_far_windows_overlap(stride: int) -> None:
    rule = spec_of(Base(stride=stride)).split
    reach = math.ceil(128 / stride) - 1
    sides = [rule.side(number, reach) for number in range(rule.block)]
    assert sides.count("held-out") + sides.count("border") == rule.block // 4
    assert sides.count("held-out") > sides.count("border")


def test_axes_units_and_signs_are_mapped() -> None:
    spec = spec_of(
        Base(),
        columns=("ax", "-w"),
        units=("g", "deg/s"),
        axes={"acc_x": "-ax", "gyro_x": "-w"},
    )
    assert spec.columns == ("ax", "-w")
    assert spec.factors == (-9.80665, math.pi / 180)


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        spec_of(Base(), columns=("acc_x",), units=("deg/s",))
    assert caught.value.code == "axes-unfit"
    assert "acc_x: deg/s cannot be turned into m/s^2" in caught.value.message
    assert "gyro_x: the sensor has no column 'gyro_x'" in caught.value.message


@pytest.mark.parametrize(
    ("given", "wanted", "factor"),
    [
        ("mg", "g", 0.001),
        ("gauss", "uT", 100.0),
        ("rad/s", "deg/s", 180 / math.pi),
        ("furlong", "furlong", 1.0),
    ],
)
def test_units_of_a_kind_turn_into_each_other(given: str, wanted: str, factor: float) -> None:
    assert factor_of(given, wanted) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("given", "wanted"), [("g", "rad/s"), ("g", "furlong"), ("x", "g")])
def test_units_of_two_kinds_do_not(given: str, wanted: str) -> None:
    with pytest.raises(InputError, match="cannot be turned into"):
        factor_of(given, wanted)


def test_a_spec_tells_all_its_problems() -> None:
    with pytest.raises(ValidationError, match=r"1 factors for 2 columns; stride is 9"):
        small_spec(factors=(1.0,), stride=9)
    with pytest.raises(ValidationError, match="shares samples with 7 before it"):
        small_spec(stride=1, split=SplitRule(held_out=7))


def test_a_gap_is_five_missing_periods_of_the_slower_rate() -> None:
    assert small_spec().gap_s == pytest.approx(0.1)
    assert small_spec(source_rate_hz=25.0).gap_s == pytest.approx(0.2)
    assert small_spec(source_rate_hz=100.0).gap_s == pytest.approx(0.1)
    assert small_spec(max_gap_s=0.5).gap_s == 0.5
    assert small_spec(source_rate_hz=100.0).averaged
    assert not small_spec(source_rate_hz=52.0).averaged

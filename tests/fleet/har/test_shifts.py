from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.errors import DataError, InputError
from fleet.har.dataset import Channel
from fleet.har.shifts import (
    Composed,
    Gain,
    Noise,
    Placement,
    Rate,
    Remount,
    parse,
    rotate,
    rotation_matrix,
)

axes = st.lists(st.floats(-10, 10), min_size=3, max_size=3).map(np.array)
degrees = st.floats(-180, 180)
AXES = [Channel(f"{sensor}_{axis}", "u") for sensor in ("acc", "gyro") for axis in "xyz"]


def angle_of(rotation: np.ndarray) -> float:
    return math.degrees(math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


@given(axes, degrees)
def test_a_rotation_is_orthogonal_with_determinant_one(axis: np.ndarray, angle: float) -> None:
    assume(np.linalg.norm(axis) > 1e-6)
    rotation = rotation_matrix(axis, angle)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert angle_of(rotation) == pytest.approx(abs(angle), abs=1e-5)
    np.testing.assert_allclose(rotation @ axis, axis, atol=1e-9)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    turned = rotation_matrix(np.array([0.0, 0.0, 2.0]), 90) @ [1, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-15)


def test_no_degrees_are_exactly_the_identity() -> None:
    assert (rotation_matrix(np.array([1.0, 2.0, 3.0]), 0) == np.eye(3)).all()
    assert (Remount(0, 0).rotation(3, "person-01") == np.eye(3)).all()


@pytest.mark.parametrize("axis", [np.zeros(3), np.array([1.0, np.nan, 0.0]), np.ones(2)])
def test_an_impossible_axis_is_refused(axis: np.ndarray) -> None:
    with pytest.raises(InputError, match="axis"):
        rotation_matrix(axis, 10)


def test_the_fleet_shares_one_rotation_and_each_device_adds_its_own() -> None:
    common = [Remount(35, 0).rotation(7, f"person-{n:02}") for n in range(4)]
    assert all((one == common[0]).all() for one in common)
    assert angle_of(common[0]) == pytest.approx(35)
    own = [Remount(35, 9).rotation(7, f"person-{n:02}") for n in range(200)]
    extra = [angle_of(one @ common[0].T) for one in own]
    assert len({one.tobytes() for one in own}) == 200
    assert np.sqrt(np.mean(np.square(extra))) == pytest.approx(9, rel=0.15)


def test_the_same_seed_and_device_give_the_same_rotation() -> None:
    shift = Remount(35)
    assert (shift.rotation(1, "person-02") == shift.rotation(1, "person-02")).all()
    assert (shift.rotation(1, "person-02") != shift.rotation(2, "person-02")).any()


@given(axes, degrees)
def test_rotating_keeps_the_length_of_every_triple(axis: np.ndarray, angle: float) -> None:
    assume(np.linalg.norm(axis) > 1e-6)
    x = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)
    turned = rotate(x, AXES, rotation_matrix(axis, angle))
    assert turned.dtype == np.float32
    for sensor in (slice(0, 3), slice(3, 6)):
        before, after = (np.linalg.norm(values[:, sensor], axis=1) for values in (x, turned))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_triples_are_found_by_name_and_others_pass_unchanged() -> None:
    names = ["temp", "acc_z", "acc_x", "acc_y", "gyro_x", "gyro_y"]
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    turned = rotate(x, [Channel(n, "u") for n in names], rotation_matrix(np.array([0, 0, 1.0]), 90))
    np.testing.assert_array_equal(turned[:, [0, 4, 5]], x[:, [0, 4, 5]])
    np.testing.assert_allclose(turned[:, 3], x[:, 2], atol=1e-6)
    np.testing.assert_allclose(turned[:, 2], -x[:, 3], atol=1e-6)
    np.testing.assert_allclose(turned[:, 1], x[:, 1], atol=1e-6)


def test_rotating_does_not_change_its_input() -> None:
    x = np.ones((1, 6, 2), np.float32)
    rotate(x, AXES, rotation_matrix(np.array([1.0, 0, 0]), 30))
    assert (x == 1).all()


def test_data_without_a_three_axis_sensor_cannot_be_rotated() -> None:
    with pytest.raises(DataError, match="these are acc_x, acc_y"):
        rotate(np.ones((1, 2, 4), np.float32), AXES[:2], np.eye(3))
    with pytest.raises(DataError, match=r"\[n, 6, t\]"):
        rotate(np.ones((1, 2, 4), np.float32), AXES, np.eye(3))


def test_shifts_are_read_from_text() -> None:
    assert parse("none") is None
    assert parse("remount:35") == Remount(35.0)
    assert parse("remount:0.5") == Remount(0.5)
    assert parse("gain:20") == Gain(20)
    assert parse("rate:10") == Rate(10)
    assert parse("noise:200") == Noise(200)
    assert parse("placement:45") == Placement(45)
    assert parse("noise:10+remount:35") == Composed((Noise(10), Remount(35)))


@pytest.mark.parametrize(
    "text",
    [
        *("", "remount", "remount:", "remount:-5", "remount:181", "remount:nan", "None"),
        *("remount:1e1", "tilt:5", "gain:51", "rate:50.1", "noise:201", "placement:181"),
        *("gain:20+", "+gain:20", "gain:20+none", "gain:20 + noise:10", "gain:20,noise:10"),
        *("gain:10+gain:20", f"noise:{'9' * 400}"),
    ],
)
def test_an_unknown_shift_is_refused_with_all_forms(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.code == "bad-shift"
    forms = ("none", "remount:DEG", "gain:PER", "rate:PER", "noise:PER", "placement:DEG", "+")
    assert all(form in caught.value.hint for form in forms)


def test_the_part_of_a_composition_that_is_wrong_is_named() -> None:
    with pytest.raises(InputError, match="unknown shift 'tilt:5' in 'gain:20\\+tilt:5'"):
        parse("gain:20+tilt:5")
    with pytest.raises(InputError, match="gain comes more often"):
        parse("gain:10+noise:1+gain:20")


def test_a_shift_says_in_words_what_it_is() -> None:
    assert str(parse("remount:35")) == "sensors re-mounted by 35°"
    assert str(parse("gain:20+rate:2.5")) == "gains off by 20 %, sampling rates off by up to 2.5 %"


def test_a_remount_checks_its_numbers() -> None:
    with pytest.raises(InputError, match="device_sigma_degrees"):
        Remount(35, float("nan"))

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import DataError, InputError
from fleet.har.dataset import Channel
from fleet.har.placement import CUTOFF_HZ, DYNAMIC_GAIN, Placement
from fleet.har.rotation import sensors
from fleet.har.shifts import Composed, Gain, Noise, Rate, Remount, Shift, parse

AXES = [Channel(f"{sensor}_{axis}", "u") for sensor in ("acc", "gyro") for axis in "xyz"]
LONE = [Channel(name, "u") for name in ("pressure", "acc_x", "acc_y")]
KINDS = [Remount(35), Gain(20), Rate(10), Noise(20), Placement(45)]
RATE_HZ = 50.0


def windows(n: int = 8, channels: int = 6, t: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, (n, channels, t)).astype(np.float32)


def sine(hertz: float, t: int = 512) -> np.ndarray:
    wave = np.sin(2 * np.pi * hertz * np.arange(t) / RATE_HZ)
    return np.tile(wave, (1, 6, 1)).astype(np.float32)


def shifted(
    shift: Shift,
    x: np.ndarray,
    channels: Sequence[Channel] = AXES,
    seed: int = 7,
    device: str = "person-02",
) -> np.ndarray:
    return shift.apply(x, channels, RATE_HZ, seed=seed, device=device)


each = pytest.mark.parametrize("shift", [*KINDS, Composed(tuple(KINDS))], ids=str)


@each
def test_a_shift_gives_new_float32_windows_of_the_same_shape(shift: Shift) -> None:
    x = windows()
    before = x.copy()
    moved = shifted(shift, x)
    assert (moved.dtype, moved.shape) == (np.float32, x.shape)
    assert not np.shares_memory(moved, x)
    assert (x == before).all()
    assert not np.allclose(moved, x)


@each
def test_seed_and_device_decide_and_nothing_else(shift: Shift) -> None:
    x = windows()
    assert (shifted(shift, x) == shifted(shift, x)).all()
    assert (shifted(shift, x) != shifted(shift, x, device="person-03")).any()
    assert (shifted(shift, x) != shifted(shift, x, seed=8)).any()


@each
@pytest.mark.parametrize(("n", "t"), [(0, 8), (1, 1), (2, 2)])
def test_few_and_short_windows_are_shifted_too(shift: Shift, n: int, t: int) -> None:
    moved = shifted(shift, windows(n=n, t=t))
    assert moved.shape == (n, 6, t)
    assert np.isfinite(moved).all()


@each
def test_windows_of_other_channels_are_refused(shift: Shift) -> None:
    with pytest.raises(DataError) as caught:
        shifted(shift, windows(channels=5))
    assert caught.value.code == "channel-count"


@pytest.mark.parametrize("shift", [Gain(0), Rate(0), Noise(0), Composed(())], ids=repr)
def test_a_shift_of_size_zero_is_the_identity(shift: Shift) -> None:
    assert (shifted(shift, windows()) == windows()).all()


@pytest.mark.parametrize("shift", [Gain(20), Rate(10), Noise(20)], ids=str)
def test_what_does_not_rotate_needs_no_three_axis_sensor(shift: Shift) -> None:
    assert shifted(shift, windows(channels=3), LONE).shape == (8, 3, 32)


@pytest.mark.parametrize("shift", [Remount(35), Placement(45)], ids=str)
def test_what_rotates_needs_a_three_axis_sensor(shift: Shift) -> None:
    with pytest.raises(DataError, match="these are pressure, acc_x, acc_y") as caught:
        shifted(shift, windows(channels=3), LONE)
    assert caught.value.code == "no-triples"
    assert "gain, rate, noise or none" in caught.value.hint


@given(st.permutations([0, 1, 2, 3]), st.integers(0, 100))
def test_a_composition_equals_its_shifts_one_after_the_other(order: list[int], seed: int) -> None:
    forms = [("remount:35", "gain:20", "rate:5", "noise:10")[place] for place in order]
    composed, one_by_one = parse("+".join(forms)), windows(n=2, t=8)
    assert composed is not None
    together = shifted(composed, one_by_one, seed=seed)
    for form in forms:
        shift = parse(form)
        assert shift is not None
        one_by_one = shifted(shift, one_by_one, seed=seed)
    assert (together == one_by_one).all()


@given(st.floats(0, 180), st.integers(0, 1000))
def test_a_remount_keeps_the_length_of_every_reading(degrees: float, seed: int) -> None:
    x = windows(n=2, t=4)
    moved = shifted(Remount(degrees), x, seed=seed)
    for sensor in (slice(0, 3), slice(3, 6)):
        lengths = [np.linalg.norm(values[:, sensor], axis=1) for values in (x, moved)]
        np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-5)


def test_channels_are_grouped_by_sensor_and_lone_ones_stay_alone() -> None:
    names = ("temp", "acc_z", "acc_x", "acc_y", "gyro_x", "gyro_y")
    assert sensors([Channel(name, "u") for name in names]) == {
        "acc": [2, 3, 1],
        "temp": [0],
        "gyro_x": [4],
        "gyro_y": [5],
    }


def test_a_gain_multiplies_a_sensors_axes_by_one_factor() -> None:
    factors = Gain(20).factors(7, "person-02", AXES)
    assert len(set(factors[:3])) == len(set(factors[3:])) == 1
    assert len(set(factors)) == 2
    np.testing.assert_allclose(
        shifted(Gain(20), windows()), windows() * factors[None, :, None], rtol=1e-6
    )
    assert len(set(Gain(20).factors(7, "person-02", LONE))) == 3


def test_a_fleet_has_one_gain_and_devices_stray_from_it_by_a_quarter_of_it() -> None:
    for seed in range(4):
        drawn = [Gain(20).factors(seed, f"person-{n:02}", AXES)[0] for n in range(300)]
        logs = np.log(drawn)
        common = math.exp(np.median(logs))
        assert min(abs(common - 1.2), abs(common - 0.8)) < 0.02
        assert np.std(logs) == pytest.approx(0.05, rel=0.2)
    assert {Gain(20).factors(seed, "a", AXES)[0] > 1 for seed in range(8)} == {True, False}


def test_the_gain_of_a_sensor_does_not_depend_on_the_others() -> None:
    turned = [*AXES[3:], *AXES[:3]]
    one, other = (Gain(20).factors(7, "person-02", channels) for channels in (AXES, turned))
    assert (one == np.roll(other, 3)).all()


@given(st.floats(0, 50), st.integers(0, 1000))
def test_sampling_rates_stay_within_their_tolerance(percent: float, seed: int) -> None:
    assert abs(Rate(percent).factor(seed, "person-01") - 1) <= percent / 100 + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_a_rate_moves_a_sinusoids_frequency_by_its_factor(seed: int) -> None:
    factor = Rate(20).factor(seed, "person-02")
    moved = shifted(Rate(20), sine(3.0), seed=seed)[0, 0]
    centre = moved[128:384]  # away from the ends, which are held
    spectrum = np.abs(np.fft.rfft(centre * np.hanning(256), 1 << 14))
    found = spectrum.argmax() * RATE_HZ / (1 << 14)
    assert found == pytest.approx(3.0 * factor, abs=0.02)


def test_a_rate_keeps_the_centre_and_holds_the_ends() -> None:
    ramp = np.tile(np.arange(33), (1, 6, 1)).astype(np.float32)
    for device in ("a", "b", "c"):
        factor = Rate(50).factor(7, device)
        moved = shifted(Rate(50), ramp, device=device)[0, 0]
        wanted = np.clip(16 + (np.arange(33) - 16) * factor, 0, 32)
        np.testing.assert_allclose(moved, wanted, atol=1e-5)


@pytest.mark.parametrize("percent", [5, 20, 200])
def test_noise_has_the_stated_share_of_each_channels_deviation(percent: float) -> None:
    scale = np.array([1, 2, 0, 10, 0.1, 5], np.float32)[:, None]
    x = windows(n=200, t=64) * scale
    noise = shifted(Noise(percent), x).astype(np.float64) - x
    wanted = percent / 100 * x.std(axis=(0, 2))
    np.testing.assert_allclose(noise.std(axis=(0, 2)), wanted, rtol=0.03, atol=1e-12)
    np.testing.assert_allclose(noise.mean(axis=(0, 2)), 0, atol=0.05 * wanted.max())


def test_noise_is_white() -> None:
    noise = shifted(Noise(100), windows(n=200, t=64)) - windows(n=200, t=64)
    next_to = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var()
    between = (noise[:, 0] * noise[:, 1]).mean() / noise.var()
    assert abs(next_to) < 0.02
    assert abs(between) < 0.04


@pytest.mark.parametrize("hertz", [1.0, CUTOFF_HZ, 15.0])
def test_a_placement_damps_motion_above_its_corner(hertz: float) -> None:
    shift = Placement(45)
    moved = shifted(shift, sine(hertz))[0, :3, 128:]
    plain = shift.rotation(7, "person-02") @ sine(hertz)[0, :3, 128:]
    ratio = moved.std(axis=1) / plain.std(axis=1) / shift.gain(7, "person-02")
    pole = math.exp(-2 * math.pi * CUTOFF_HZ / RATE_HZ)
    passed = (1 - pole) / abs(1 - pole * np.exp(-2j * math.pi * hertz / RATE_HZ))
    np.testing.assert_allclose(ratio, passed, rtol=0.02)
    assert passed == pytest.approx(1 / math.sqrt(1 + (hertz / CUTOFF_HZ) ** 2), rel=0.2)


def test_a_placement_keeps_the_length_of_gravity() -> None:
    still = np.zeros((1, 6, 64), np.float32)
    still[:, 2] = 9.81
    moved = shifted(Placement(45), still)
    np.testing.assert_allclose(np.linalg.norm(moved[:, :3], axis=1), 9.81, rtol=1e-5)
    assert np.ptp(moved, axis=2).max() < 1e-5


def test_a_fleets_placement_moves_more_or_less_by_one_factor_and_devices_stray_little() -> None:
    for seed in range(4):
        logs = np.log([Placement(45).gain(seed, f"person-{n:02}") for n in range(300)])
        assert abs(np.median(logs)) == pytest.approx(math.log(DYNAMIC_GAIN), abs=0.02)
        assert np.std(logs) == pytest.approx(0.1, rel=0.2)
    assert {Placement(45).gain(seed, "a") > 1 for seed in range(8)} == {True, False}


def test_a_placement_and_a_remount_turn_about_axes_of_their_own() -> None:
    rotations = [shift.rotation(7, "person-02") for shift in (Remount(45), Placement(45))]
    assert not np.allclose(*rotations)


def test_a_placement_leaves_channels_without_sensor_as_they_are() -> None:
    channels = [*AXES[:3], Channel("pressure", "Pa")]
    x = windows(channels=4)
    assert (shifted(Placement(45), x, channels)[:, 3] == x[:, 3]).all()


@pytest.mark.parametrize("rate_hz", [0.0, -50.0, math.nan, math.inf])
def test_a_placement_needs_a_sampling_rate(rate_hz: float) -> None:
    with pytest.raises(DataError, match="rate_hz must be a positive number"):
        Placement(45).apply(windows(), AXES, rate_hz, seed=0, device="person-01")


@pytest.mark.parametrize("kind", [Remount, Gain, Rate, Noise, Placement])
@pytest.mark.parametrize("size", [-1.0, 1000.0, math.nan, math.inf])
def test_sizes_out_of_range_are_refused(kind: type[Gain], size: float) -> None:
    with pytest.raises(InputError, match=f"of {kind.__name__.lower()} must be 0 to") as caught:
        kind(size)
    assert caught.value.code == "bad-shift"

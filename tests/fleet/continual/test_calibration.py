from __future__ import annotations

import numpy as np
import pytest
import torch

from fleet.adapt.fold import fold, norms_behind
from fleet.adapt.network import folded_network, parameters_of, raw_network, with_parameters
from fleet.continual.calibration import (
    LARGEST_SCALE,
    Calibration,
    absorbed,
    calibrated,
    calibration_of,
    trust_of,
)
from fleet.errors import InputError
from fleet.peft.ada_bn import calibrate
from tests.fleet.continual.bases import make_base, windows_of


@pytest.mark.parametrize("model", ["small-cnn", "t-resnet"])
def test_a_calibrated_network_is_the_folded_one_of_recalibrated_norms(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.continual.calibration.LARGEST_SCALE", 1e6)
    base, x = make_base(name=model), windows_of(24)
    own = calibrated(folded_network(base), calibration_of(base, x))
    oracle = fold(calibrate(raw_network(base), torch.from_numpy(x)))
    with torch.no_grad():
        got, wanted = own(torch.from_numpy(x)), oracle(torch.from_numpy(x))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# Where a norm did not fold, the calibrated network composes two maps in float32.
@pytest.mark.parametrize(("model", "near"), [("small-cnn", 1e-9), ("t-resnet", 1e-5)])
def test_kernels_that_absorbed_a_calibration_compute_what_the_calibrated_network_does(
    model: str, near: float
) -> None:
    base, x = make_base(name=model), torch.from_numpy(windows_of(24)).double()
    found = calibration_of(base, windows_of(24), trust=trust_of(24))
    network = folded_network(base).double()
    layers = {norm: layer for layer, norm in norms_behind(raw_network(base)).items()}
    before = parameters_of(network)
    dense = absorbed(before, found, layers)
    assert dense.keys() == before.keys()
    assert all(dense[name].dtype == before[name].dtype for name in before)
    own = calibrated(network, found).double()
    with torch.no_grad():
        wanted = own(x)
        assert not torch.allclose(network(x), wanted, rtol=1e-3)
        got = with_parameters(network, dense)(x)
    torch.testing.assert_close(got, wanted, rtol=near, atol=near)


def test_few_windows_deserve_little_trust() -> None:
    assert (trust_of(0), trust_of(64)) == (0.0, 0.5)
    assert trust_of(2) < trust_of(256) < 1


def test_without_trust_a_device_keeps_the_fleets_statistics() -> None:
    base, x = make_base(), windows_of(24)
    own = calibrated(folded_network(base), calibration_of(base, x, trust=0.0))
    with torch.no_grad():
        got = own(torch.from_numpy(x))
        wanted = folded_network(base)(torch.from_numpy(x))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_calibrating_leaves_kernels_and_the_shared_network_alone() -> None:
    base, x = make_base(), windows_of(24)
    shared = folded_network(base)
    before = {name: p.detach().clone() for name, p in shared.named_parameters()}
    own = dict(calibrated(shared, calibration_of(base, x)).named_parameters())
    for name, parameter in shared.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(own[name], before[name])
    assert set(own) > set(before)


def test_a_silent_channel_is_not_amplified_without_limit() -> None:
    base, x = make_base(), np.zeros((8, 3, 32), np.float32)
    for scale, shift in calibration_of(base, x).maps.values():
        assert np.all(scale <= LARGEST_SCALE)
        assert np.isfinite(shift).all()


def test_a_calibration_comes_back_from_its_arrays() -> None:
    found = calibration_of(make_base(), windows_of(24))
    again = Calibration.of_arrays(found.arrays())
    assert again.maps.keys() == found.maps.keys()
    for name, pair in found.maps.items():
        for one, two in zip(pair, again.maps[name], strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("count", "trust", "code"), [(1, 1.0, "too-few-windows"), (8, 1.5, "calibration-trust")]
)
def test_what_cannot_be_estimated_is_refused(count: int, trust: float, code: str) -> None:
    with pytest.raises(InputError) as caught:
        calibration_of(make_base(), windows_of(count), trust=trust)
    assert caught.value.code == code

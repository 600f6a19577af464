from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fleet.adapt.cohort.train import train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.frames import FrameKind
from fleet.adapt.train import OptimiserName
from fleet.errors import InputError, RoundError
from fleet.models.registry import names
from tests.fleet.adapt.cohort.fleets import (
    BACKBONES,
    assert_alike,
    bench,
    bench_of,
    flat,
    fleet,
    fleet_for,
    network_of,
    work,
)

SGD: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 0.01}
ADAM: dict[str, Any] = {"optimiser": "adam", "learning_rate": 0.003}


def test_every_registered_backbone_is_tried() -> None:
    assert set(BACKBONES) == set(names())


# A network of many layers takes seconds: one way of it by default, all ways of the small ones.
DEEP = {"mobilenetv2-1d": ("core", "svd"), "mobilenetv2-2d": ("core+head", "svd")}
WAYS = [("core", "svd"), ("core", "tt"), ("head", "svd"), ("bias", "svd"), ("core+head", "svd")]
EACH_IN_EVERY_WAY = [
    pytest.param(name, *way, marks=() if way == DEEP.get(name, way) else pytest.mark.faults)
    for name in BACKBONES
    for way in WAYS
]
SHALLOW = [
    pytest.param(name, marks=pytest.mark.faults if name in DEEP else ()) for name in BACKBONES
]


@pytest.mark.parametrize(("name", "method", "kind"), EACH_IN_EVERY_WAY)
def test_a_fleet_trained_together_is_the_fleet_trained_one_by_one(
    name: str, method: str, kind: FrameKind
) -> None:
    tried, works = bench(name, method, kind), fleet_for(name)
    got = train_cohort(tried.cohort(), works, **SGD)
    assert_alike(got, tried.alone(works, **SGD), 1e-9)


@pytest.mark.parametrize("name", SHALLOW)
def test_adam_counts_each_devices_own_steps(name: str) -> None:
    tried, works = bench(name), fleet_for(name)
    got = train_cohort(tried.cohort(), works, **ADAM)
    assert_alike(got, tried.alone(works, **ADAM), 1e-9)


@pytest.mark.parametrize("name", ["concatenating", "mobile-like", "two-dimensional"])
def test_cores_biases_and_the_head_train_together_in_every_topology(name: str) -> None:
    network = network_of(name)
    dense = {n for n, _ in network.named_parameters() if n.endswith("bias")} | {"head.weight"}
    tried, works = bench_of(network, *sorted(dense)), fleet()
    assert_alike(train_cohort(tried.cohort(), works, **SGD), tried.alone(works, **SGD), 1e-9)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_step_in_single_precision_is_the_oracles(name: str) -> None:
    tried = bench(name)
    works = [replace(one, order=one.order[:1]) for one in fleet_for(name)]
    got = train_cohort(tried.cohort(torch.float32), works, **SGD)
    for one, other in zip(got, tried.alone(works, torch.float32, **SGD), strict=True):
        wanted = flat(other)
        assert flat(one).dtype == np.float32
        assert np.linalg.norm(flat(one) - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("how", [SGD, ADAM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["calanet", "small-cnn", "t-resnet"])
def test_a_device_that_trains_alone_runs_the_lean_learners_own_arithmetic(
    name: str, dtype: torch.dtype, how: dict[str, Any]
) -> None:
    tried, works = bench(name), fleet(epochs=1)
    got = train_cohort(tried.cohort(dtype), works, chunk=1, **how)
    # Not bit for bit: oneDNN sums in another order where memory is aligned otherwise.
    close = 1e-12 if dtype is torch.float64 else 1e-5
    for one, other in zip(got, tried.alone(works, dtype, lean=True, **how), strict=True):
        np.testing.assert_allclose(flat(one), flat(other), rtol=close, atol=close)


@pytest.mark.parametrize(
    ("chunk", "slice_windows"), [(1, 64), (2, 1), (3, 16), (5, 16), (5, 64), (9, 24)]
)
def test_neither_chunks_nor_slices_matter(chunk: int, slice_windows: int) -> None:
    tried = bench("small-cnn")
    works = [*fleet(), work(1, "one"), work(9, "nine")]
    wanted = tried.alone(works, **SGD)
    cohort = tried.cohort(slice_windows=slice_windows)
    assert_alike(train_cohort(cohort, works, chunk=chunk, **SGD), wanted, 1e-9)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_results_follow_the_devices_whatever_their_order(optimiser: OptimiserName) -> None:
    tried, works = bench("small-cnn"), [*fleet(), work(9, "nine")]
    how: dict[str, Any] = {"optimiser": optimiser, "learning_rate": 0.003}
    cohort, turned = tried.cohort(), [2, 0, 3, 1]
    wanted = train_cohort(cohort, works, **how)
    got = train_cohort(cohort, [works[d] for d in turned], **how)
    assert_alike(got, [wanted[d] for d in turned], 1e-9)


def test_devices_may_share_one_tensor_of_windows() -> None:
    tried, works = bench("small-cnn"), fleet()
    x, y = (torch.cat([getattr(w, part) for w in works]).flip(0) for part in ("x", "y"))
    ends = np.cumsum([len(w.y) for w in works])
    shared = [
        DeviceWork(x, y, w.order, len(y) - 1 - np.arange(end - len(w.y), end))
        for w, end in zip(works, ends, strict=True)
    ]
    cohort = tried.cohort()
    for one, other in zip(
        train_cohort(cohort, shared, **SGD), train_cohort(cohort, works, **SGD), strict=True
    ):
        np.testing.assert_array_equal(flat(one), flat(other))


# Adam shrinks any gradient to its rate, so no window is too large for it.
@pytest.mark.parametrize(("how", "factor"), [(SGD, 1e36), (SGD, np.nan), (ADAM, np.nan)])
def test_a_device_that_diverges_fails_by_itself(how: dict[str, Any], factor: float) -> None:
    tried, works = bench("small-cnn"), fleet()
    ill = replace(works[1], x=works[1].x.clone())
    ill.x[3:6] *= factor
    cohort = tried.cohort(torch.float32)
    well = train_cohort(cohort, works, **how)
    error: Any
    one, error, three = train_cohort(cohort, [works[0], ill, works[2]], **how)
    assert isinstance(error, RoundError)
    assert error.code == "training-diverged"
    with pytest.raises(RoundError) as alone:
        tried.alone([ill], torch.float32, **how)
    assert str(alone.value) == str(error)
    np.testing.assert_array_equal(flat(one), flat(well[0]))
    np.testing.assert_array_equal(flat(three), flat(well[2]))


def test_a_rate_at_which_all_diverge_gives_every_device_its_error() -> None:
    found = train_cohort(
        bench("small-cnn").cohort(torch.float32), fleet(), optimiser="sgd", learning_rate=1e30
    )
    assert [getattr(error, "code", "") for error in found] == ["training-diverged"] * 3


def test_a_device_without_a_step_stays_where_it_is() -> None:
    tried, works = bench("small-cnn"), fleet()
    got = train_cohort(tried.cohort(), [replace(works[0], order=()), works[1]], **SGD)
    still = got[0]
    assert isinstance(still, tuple)
    assert (still[0].norm, still[1].steps, still[1].loss) == (0.0, 0, 0.0)
    assert_alike(got[1:], tried.alone(works[1:2], **SGD), 1e-9)


def test_no_devices_give_no_results_and_no_chunk_is_empty() -> None:
    cohort = bench("small-cnn").cohort()
    assert train_cohort(cohort, [], **SGD) == []
    with pytest.raises(InputError, match="a chunk has 1 device or more"):
        train_cohort(cohort, fleet(), chunk=0, **SGD)

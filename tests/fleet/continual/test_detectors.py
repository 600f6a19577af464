"""The laws of fleet.continual.drift, for every detector that it knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.continual import change_tests
from fleet.continual.change_tests import AdwinTest
from fleet.continual.drift import (
    DETECTORS,
    TESTS,
    Detector,
    LabelFreeDrift,
    LossDrift,
    restore,
)
from fleet.continual.signals import (
    Reference,
    confidence,
    entropy,
    feature_distance,
    signals,
)
from fleet.errors import InputError, StorageError, UnavailableError

VARIANTS: dict[str, list[Callable[[], Detector]]] = {
    "loss": [LossDrift],
    "label-free": [
        *(lambda test=test: LabelFreeDrift(test=test, warm_up=100) for test in TESTS),  # type: ignore[misc]
        lambda: LabelFreeDrift(columns=1, block=7, warm_up=90),
    ],
}
CASES = [
    pytest.param(make, id=f"{kind}-{number}")
    for kind in DETECTORS
    for number, make in enumerate(VARIANTS[kind])
]
every_detector = pytest.mark.parametrize("make", CASES)


def stream(
    detector: Detector, seed: int, parts: Iterable[tuple[int, float]]
) -> NDArray[np.float64]:
    """Windows of three activities whose signals differ; each part has its shift of all of them."""
    rng = np.random.default_rng(seed)
    levels = np.concatenate([np.full(n, level) for n, level in parts])
    if isinstance(detector, LossDrift):
        return (rng.random(len(levels)) < 0.05 + levels / 5).astype(np.float64)
    assert isinstance(detector, LabelFreeDrift)
    labels = np.repeat(rng.integers(0, 3, len(levels)), 15)[: len(levels)]
    noise = rng.standard_normal((len(levels), detector.columns))
    return np.column_stack([labels, noise + 5.0 * labels[:, None] + levels[:, None]])


def alarms(detector: Detector, values: NDArray[np.float64], cuts: Iterable[int] = ()) -> list[int]:
    """All alarms, as rows of the whole stream."""
    found: list[int] = []
    ends = [*sorted(cuts), len(values)]
    for start, end in zip([0, *ends], ends, strict=False):
        found += [start + row for row in detector.update(values[start:end])]
    return found


CHANGING = [(800, 0.0), (800, 4.0), (800, 0.0)]


def test_every_kind_has_variants_here() -> None:
    assert set(VARIANTS) == set(DETECTORS)


@every_detector
def test_a_large_change_is_seen_soon_and_the_new_normal_is_learned(
    make: Callable[[], Detector],
) -> None:
    detector = make()
    found = alarms(detector, stream(detector, 1, CHANGING))
    assert len(found) == 2
    assert 800 <= found[0] < 1200
    assert 1600 <= found[1] < 2100


@every_detector
def test_a_stable_stream_of_changing_activities_raises_no_alarm(
    make: Callable[[], Detector],
) -> None:
    detector = make()
    assert alarms(detector, stream(detector, 2, [(4000, 0.0)])) == []


@every_detector
@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e6])
def test_a_constant_stream_raises_no_alarm(make: Callable[[], Detector], value: float) -> None:
    detector = make()
    values = np.full_like(stream(detector, 0, [(1000, 0.0)]), value)
    if values.ndim == 2:
        values[:, 0] = 0
    assert alarms(detector, values) == []


@every_detector
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 2400), max_size=5))
def test_alarms_do_not_depend_on_batches(make: Callable[[], Detector], cuts: list[int]) -> None:
    whole, parts = make(), make()
    values = stream(whole, 3, CHANGING)
    assert alarms(whole, values) == alarms(parts, values, cuts)
    assert whole.state() == parts.state()


@every_detector
@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 2400))
def test_a_restored_detector_goes_on_as_the_first_would_have(
    make: Callable[[], Detector], cut: int
) -> None:
    first = make()
    values = stream(first, 4, CHANGING)
    first.update(values[:cut])
    second = restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert second.state() == first.state()
    assert second.update(values[cut:]) == first.update(values[cut:])
    assert second.state() == first.state()


@every_detector
def test_nothing_is_declared_while_warming_up(make: Callable[[], Detector]) -> None:
    detector = make()
    warm_up = detector.warm_up  # type: ignore[attr-defined]
    values = stream(detector, 5, [(40, 0.0), (30, 9.0)] * 30)
    found = alarms(detector, values)
    assert all(row >= warm_up for row in found)
    assert (np.diff(found) >= warm_up).all()


@every_detector
def test_restarting_makes_a_new_detector(make: Callable[[], Detector]) -> None:
    detector = make()
    detector.update(stream(detector, 6, [(333, 0.0)]))
    detector.restart()
    assert detector.state() == make().state()


@every_detector
def test_values_that_do_not_fit_are_refused_and_not_taken(make: Callable[[], Detector]) -> None:
    detector = make()
    good = stream(detector, 7, [(50, 0.0)])
    bad = good.copy()
    bad[-1] = np.nan
    for values in (bad, np.zeros((3, 9)), np.zeros((1, 2, 3))):
        with pytest.raises(InputError) as refused:
            detector.update(values)
        assert refused.value.code == "drift-values"
    assert detector.state() == make().state()


@every_detector
@pytest.mark.parametrize(
    "change",
    [
        {"kind": "none"},
        {"warm_up": -1},
        {"seen": "x"},
        {"test": 7, "tests": [[1e400]] * 2},
        {"running": []},
    ],
)
def test_what_is_no_state_is_refused(
    make: Callable[[], Detector], change: dict[str, object]
) -> None:
    state = make().state()
    relevant = {name: value for name, value in change.items() if name in state}
    if not relevant:
        pytest.skip("this detector has no such part")
    with pytest.raises(StorageError) as refused:
        restore({**state, **relevant})
    assert refused.value.code == "bad-detector"


def test_a_long_log_is_halved_and_the_detector_still_goes_on_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_tests, "LOG_VALUES", 64)
    first = LossDrift(delta=0.01, warm_up=10)
    values = stream(first, 8, [(300, 0.0), (100, 5.0)])
    first.update(values[:170])
    assert len(first.state()["test"]) <= 64
    second = restore(first.state())
    assert second.update(values[170:]) == first.update(values[170:])
    with pytest.raises(ValueError, match="64"):
        AdwinTest(0.1).load([0.0] * 65)


def test_an_activity_that_becomes_frequent_is_no_drift() -> None:
    rng = np.random.default_rng(9)
    detector = LabelFreeDrift(columns=1)
    labels = np.concatenate([rng.integers(0, 2, 600), np.ones(1000, np.int64)])
    signal = 8.0 * labels + rng.standard_normal(1600)
    assert detector.update(np.column_stack([labels, signal])) == ()
    # Without the class, the same stream looks like a drift.
    assert LabelFreeDrift(columns=1).update(np.column_stack([0 * labels, signal])) != ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LossDrift(delta=0),
        lambda: LossDrift(delta=1),
        lambda: LabelFreeDrift(test="guess"),  # type: ignore[arg-type]
        lambda: LabelFreeDrift(columns=0),
        lambda: LabelFreeDrift(block=50, warm_up=499),
        lambda: LabelFreeDrift(parameter=float("nan")),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Detector]) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert refused.value.code == "drift-parameters"


def test_without_river_the_extra_is_named_and_the_default_still_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(UnavailableError, match="river") as refused:
        LossDrift()
    assert refused.value.code == "extra-missing"
    assert "device-drift" in refused.value.hint
    assert LabelFreeDrift().update(np.zeros((5, 3))) == ()


def test_confidence_and_entropy_are_opposite_ends_of_one_scale() -> None:
    logits = np.array([[1000.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert confidence(logits) == pytest.approx([1.0, 1 / 3])
    assert entropy(logits) == pytest.approx([0.0, 1.0])


def test_the_distance_is_about_one_on_source_features_whatever_their_scale() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    predicted = rng.integers(0, 3, 3000)
    features = rng.standard_normal((3000, 6)) @ mixing + 20.0 * predicted[:, None]
    reference = Reference.of(features, predicted, 4)
    distance = feature_distance(features, reference, predicted)
    assert np.mean(distance**2) == pytest.approx(1.0, abs=0.02)
    assert feature_distance(features + 10, reference, predicted).min() > distance.mean()
    # A class without windows is compared with the mean of all.
    assert np.allclose(reference.means[3], features.mean(axis=0))


def test_signals_are_finite_even_for_a_certain_model_at_the_mean() -> None:
    reference = Reference.of(np.ones((4, 3)), np.zeros(4, np.int64), 2)
    found = signals(np.array([[500.0, 0.0]]), np.ones((1, 3)), reference)
    assert found.shape == (1, 3)
    assert np.isfinite(found).all()
    with pytest.raises(InputError, match="n >= 2"):
        Reference.of(np.ones((1, 3)), np.zeros(1, np.int64), 2)

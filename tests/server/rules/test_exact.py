from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.federate.aggregate import PartialSum, dequantise
from server import coordinator as c
from server.rules.exact import clipped, norm_of
from tests.server.coordinating import DEVICES, answer, opened
from tests.server.rules.making import SIZE, STEP, closed, cohort, deltas_of, update

ROOT = Path(__file__).parents[3]
entries = st.lists(st.integers(-(2**35), 2**35), min_size=1, max_size=20)
norms = st.floats(1e-3, 1000)


def test_the_mean_is_the_exact_weighted_mean() -> None:
    updates = cohort(9)
    wanted = PartialSum.of(((u.steps, u.weight) for u in updates.values()), SIZE).mean()
    found = closed("mean", updates)
    np.testing.assert_array_equal(found.mean, wanted)
    assert found.record == {}


def test_releases_by_the_mean_have_the_digests_of_before_there_was_a_choice() -> None:
    # Recorded at the commit before rules came, with the same fleet.
    state = opened()
    for device in DEVICES:
        state, _ = c.step(state, answer(state, device))
    assert state.release.digest == (
        "96566fbab963e8d81c683ec7a404fc8ece995dd8cefca25eb1c81beafc9ad0cb"
    )
    for event in (c.Published(2.0), c.Fleet(3.0, DEVICES[:3]), c.Pushed(3.0)):
        state, _ = c.step(state, event)
    for n, device in enumerate(DEVICES[:3]):
        state, _ = c.step(state, answer(state, device, 4.0, examples=7 + n))
    assert state.release.digest == (
        "dcc7e531e81d1f7437584f75eb2f3b7726effc852821811678fc361ca4d2f829"
    )


def test_a_coordinator_with_the_mean_loads_no_flower() -> None:
    script = (
        "import sys; from server import coordinator; from server.rules import rule_of;"
        "from fleet.federate.rule import MEAN; rule_of(MEAN);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'flwr', 'grpc'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"


@given(entries, norms)
def test_a_clipped_delta_is_never_longer_than_the_norm(found: list[int], norm: float) -> None:
    assert norm_of(clipped(np.array(found), norm)) <= norm * (1 + 1e-12)


@given(entries, norms)
def test_clipping_turns_no_delta_and_clips_no_more_than_it_must(
    found: list[int], norm: float
) -> None:
    steps = np.array(found)
    cut, length = clipped(steps, norm), norm_of(steps)
    wanted = steps * min(1.0, norm / length if length else 1.0)
    assert np.abs(cut - wanted).max() < 1 + 1e-3
    assert (np.sign(cut) * np.sign(steps) >= 0).all()


@given(entries, norms)
def test_a_delta_within_the_norm_stays_as_it_is(found: list[int], norm: float) -> None:
    steps = np.array(found)
    once = clipped(steps, norm)
    assert (once is steps) == (norm_of(steps) <= norm)
    np.testing.assert_array_equal(clipped(once, norm * (1 + 1e-9)), once)


@given(entries)
def test_the_norm_is_that_of_exact_rationals(found: list[int]) -> None:
    wanted = np.sqrt(float(sum(each * each for each in found))) * STEP
    assert norm_of(np.array(found)) == pytest.approx(wanted, rel=1e-15)


@given(seed=st.integers(0, 50))
def test_clipping_at_a_norm_that_nobody_reaches_is_the_mean(seed: int) -> None:
    updates = cohort(7, seed)
    found = closed("clip:1000", updates)
    np.testing.assert_array_equal(found.mean, closed("mean", updates).mean)
    assert found.record == {"clipped": []}


def test_clipping_names_whom_it_cut_and_bounds_what_one_device_can_do() -> None:
    updates = cohort(4, liars=1)
    longest = max(np.linalg.norm(deltas_of(updates)[1:], axis=1))
    found = closed(f"clip:{longest + 1e-6}", updates)
    assert found.record == {"clipped": ["person-00"]}
    without = {name: each for name, each in updates.items() if name != "person-00"}
    weights = {name: each.weight for name, each in updates.items()}
    share = weights["person-00"] / sum(weights.values())
    others = dequantise(closed("mean", without).mean) * (1 - share)
    assert np.linalg.norm(dequantise(found.mean) - others) <= longest * share * (1 + 1e-3)


def test_clipping_is_the_mean_of_clipped_deltas() -> None:
    one, other = np.zeros(SIZE), np.zeros(SIZE)
    one[:2], other[:2] = (3, 4), (0.5, 0)
    found = closed("clip:2.5", {"a": update("a", one, 3), "b": update("b", other, 1)})
    np.testing.assert_allclose(dequantise(found.mean)[:2], [(1.5 * 3 + 0.5) / 4, 1.5], atol=STEP)

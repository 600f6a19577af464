from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.adapt.attach import make_frames
from fleet.adapt.frames import FrameKind
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.continual.growth import rebased
from fleet.continual.personal import held_back, re_expressed
from fleet.peft.registry import find
from tests.fleet.continual.bases import make_base, state_of


@given(st.lists(st.integers(0, 2**62), unique=True, max_size=50))
def test_a_window_is_held_back_whatever_comes_with_it(ids: list[int]) -> None:
    together = held_back(np.array(ids, np.int64))
    assert together.tolist() == [bool(held_back(np.array([one]))[0]) for one in ids]


def test_about_a_fifth_is_held_back() -> None:
    assert 0.17 < held_back(np.arange(10_000)).mean() < 0.23


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
def test_on_the_same_base_a_personal_core_stays_what_it_is(kind: FrameKind) -> None:
    base = make_base(kind)
    personal = state_of(base)
    again = re_expressed(personal, base, base, personal.layout)
    np.testing.assert_allclose(again.flat(), personal.flat(), atol=1e-5)


def test_on_a_rebased_base_it_moves_kernels_as_near_as_the_new_frames_reach() -> None:
    old = make_base("tt")
    network = folded_network(old)
    merged = merge(parameters_of(network), old.frames, state_of(old, seed=8))
    new = rebased(
        old, state_of(old, seed=8), make_frames(with_parameters(network, merged), "tt", 2)
    )
    layout = find("core+head").layout(folded_network(new), new.frames)
    personal = state_of(old)
    moved = re_expressed(personal, old, new, layout)
    wanted = _moves(old, personal)
    found = _moves(new, moved)
    rng = np.random.default_rng(0)
    for name in wanted:
        error = np.linalg.norm(found[name] - wanted[name])
        for _ in range(3):
            noise = rng.standard_normal(layout.size).astype(np.float32) * 1e-3
            other = type(moved).from_flat(layout, moved.flat() + noise)
            assert error <= np.linalg.norm(_moves(new, other)[name] - wanted[name]) + 1e-6


def _moves(base: object, state: object) -> dict[str, np.ndarray]:
    parameters = parameters_of(folded_network(base))  # type: ignore[arg-type]
    merged = merge(parameters, base.frames, state)  # type: ignore[attr-defined,arg-type]
    return {n: merged[n].astype(np.float64) - parameters[n] for n in parameters}

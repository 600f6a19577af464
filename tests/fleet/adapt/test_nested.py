from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fleet.adapt.attach import Attached, attach, make_frames
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.merge import merge
from fleet.adapt.nested import limit_columns, narrowed, nested_frames, widened
from fleet.adapt.network import parameters_of
from fleet.adapt.state import CoreState, Layout
from fleet.adapt.train import train
from fleet.errors import FrameError, MismatchError
from tests.fleet.adapt.lean.comparing import assert_same, distance, gradients
from tests.fleet.adapt.lean.networks import NETWORKS, folded, state_of
from tests.fleet.adapt.lean.networks import windows as lean_windows

NESTING: tuple[FrameKind, ...] = ("svd", "random", "gradient", "people")
HOW: list[Callable[..., Attached]] = [attach, attach_lean]


def wide_state(seed: int = 0, dtype: str = "f4") -> CoreState:
    random = np.random.default_rng(seed)
    return CoreState.of(
        {
            "a.core": random.normal(size=(4, 3)).astype(dtype),
            "b.core": random.normal(size=(2, 1)).astype(dtype),
            "head.bias": random.normal(size=5).astype(dtype),
        }
    )


def network() -> nn.Module:
    return folded(NETWORKS["concatenating"])


def frames_for(net: nn.Module, kind: FrameKind, rank: int) -> dict[str, Frame]:
    x = lean_windows(8, torch.float32)
    return make_frames(net, kind, rank, x, sources=[(x, torch.arange(8) % 4)])


@given(seed=st.integers(0, 99), rank=st.integers(0, 4), dtype=st.sampled_from(["f4", "f8"]))
@settings(deadline=None, max_examples=40)
def test_widening_what_was_narrowed_is_a_projection(seed: int, rank: int, dtype: str) -> None:
    state = wide_state(seed, dtype)

    def project(s: CoreState) -> CoreState:
        return widened(narrowed(s, rank), state.layout)

    once = project(state)
    assert once.layout == state.layout
    assert project(once).digest == once.digest
    for name in ("a.core", "b.core"):
        np.testing.assert_array_equal(once.arrays[name][:, :rank], state.arrays[name][:, :rank])
        assert not once.arrays[name][:, rank:].any()
    np.testing.assert_array_equal(once.arrays["head.bias"], state.arrays["head.bias"])


@given(one=st.integers(0, 99), two=st.integers(0, 99), rank=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_narrowing_and_widening_are_linear(one: int, two: int, rank: int) -> None:
    a, b = wide_state(one), wide_state(two)
    assert narrowed(a + b, rank).digest == (narrowed(a, rank) + narrowed(b, rank)).digest
    layout = a.layout
    left, right = (narrowed(s, rank) for s in (a, b))
    assert (
        widened(left + right, layout).digest
        == (widened(left, layout) + widened(right, layout)).digest
    )


def test_narrowing_what_was_widened_gives_it_back() -> None:
    narrow = narrowed(wide_state(), {"a": 2, "b": 1})
    assert narrowed(widened(narrow, wide_state().layout), {"a": 2}).digest == narrow.digest


def test_a_layer_of_rank_zero_loses_its_entry_and_comes_back_as_zeros() -> None:
    narrow = narrowed(wide_state(), {"a": 0})
    assert set(narrow.arrays) == {"b.core", "head.bias"}
    assert not widened(narrow, wide_state().layout).arrays["a.core"].any()


@pytest.mark.parametrize("kind", NESTING)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_widened_state_merges_to_the_bits_of_the_narrow_one(kind: FrameKind, rank: int) -> None:
    net = network()
    frames = frames_for(net, kind, 3)
    state = state_of(net, frames).astype(np.float32)
    narrow = narrowed(state, rank)
    own = parameters_of(net)
    thin = merge(own, nested_frames(frames, rank), narrow)
    wide = merge(own, frames, widened(narrow, state.layout))
    for name, array in thin.items():
        assert array.tobytes() == wide[name].tobytes(), name


@pytest.mark.parametrize("kind", NESTING)
def test_frames_of_a_narrow_state_are_those_of_the_smaller_rank(kind: FrameKind) -> None:
    net = network()
    wide, narrow = frames_for(net, kind, 3), frames_for(net, kind, 2)
    for name, frame in nested_frames(wide, 2).items():
        np.testing.assert_allclose(frame.array, narrow[name].array, rtol=2e-2, atol=1e-6)
        assert (frame.kind, frame.rank) == (kind, 2)


@pytest.mark.parametrize("kind", NESTING)
@pytest.mark.parametrize("how", HOW)
def test_a_narrow_state_trains_with_the_gradients_of_the_wide_ones_first_columns(
    kind: FrameKind, how: Callable[..., Attached]
) -> None:
    net = network()
    frames = frames_for(net, kind, 3)
    narrow = narrowed(state_of(net, frames), 2)
    wide = widened(
        narrow, Layout.of({f"{n}.core": (len(net.get_parameter(f"{n}.weight")), 3) for n in frames})
    )
    thin, full = (how(net, frames, s, dtype=torch.float64) for s in (narrow, wide))
    x = lean_windows()
    wanted = gradients(full, x)
    for name, gradient in gradients(thin, x).items():
        assert distance(gradient, wanted[name][:, :2]) <= 1e-9


def test_the_lean_trainer_trains_a_narrow_state_as_autograd_does() -> None:
    net = network()
    frames = frames_for(net, "gradient", 3)
    state = narrowed(state_of(net, frames), {next(iter(frames)): 1})
    lean = attach_lean(net, frames, state, dtype=torch.float64)
    assert_same(lean, attach(net, frames, state, dtype=torch.float64), lean_windows(), 1e-9)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("how", HOW)
def test_limited_columns_alone_move_and_the_rest_of_a_release_stays(
    how: Callable[..., Attached], optimiser: str
) -> None:
    net = network()
    frames = frames_for(net, "svd", 3)
    release = state_of(net, frames)
    attached = how(net, frames, release, dtype=torch.float64)
    limit_columns(attached, 2)
    before = attached.state()
    y = torch.arange(5) % 4
    order = [np.arange(5), np.arange(3)]
    train(attached, lean_windows(), y, order, optimiser=optimiser, learning_rate=0.1)  # type: ignore[arg-type]
    delta = attached.state() - before
    for array in delta.arrays.values():
        assert array[:, :2].any()
        assert not array[:, 2:].any()
    assert widened(narrowed(delta, 2), delta.layout).digest == delta.digest


def test_a_tt_frame_refuses_narrow_cores_wherever_they_are_used() -> None:
    net = network()
    frames = frames_for(net, "tt", 2)
    state = narrowed(state_of(net, frames), 1)
    for use in (
        lambda: nested_frames(frames, 1),
        lambda: merge(parameters_of(net), frames, state),
        lambda: attach(net, frames, state, dtype=torch.float32),
        lambda: attach_lean(net, frames, state, dtype=torch.float32),
    ):
        with pytest.raises(FrameError) as caught:
            use()
        assert caught.value.code == "frame-not-nested"


@pytest.mark.parametrize(
    ("ranks", "code"),
    [({"a": 4}, "rank-too-large"), ({"a": -1}, "rank-too-small"), (-1, "rank-too-small")],
)
def test_ranks_that_a_core_cannot_have_are_refused(ranks: int | dict[str, int], code: str) -> None:
    with pytest.raises(FrameError) as caught:
        narrowed(wide_state(), ranks)
    assert caught.value.code == code


def test_ranks_of_layers_without_a_core_are_refused() -> None:
    with pytest.raises(MismatchError) as caught:
        narrowed(wide_state(), {"head": 1})
    assert caught.value.code == "unknown-entry"
    frame = make_frame(np.random.default_rng(0).normal(size=(4, 3, 3)), "svd", 2)
    with pytest.raises(MismatchError) as caught:
        nested_frames({"a": frame}, {"b": 1})
    assert caught.value.code == "unknown-entry"


@pytest.mark.parametrize(
    "shapes",
    [
        {"a.core": (4, 2)},
        {"a.core": (5, 3)},
        {"b.core": (4, 3)},
        {"a.core": (4, 3), "head.bias": (6,)},
        {"a.core": (4, 3), "b.core": (2, 1), "head.weight": (2, 2)},
    ],
)
def test_a_state_that_is_no_part_of_the_layout_is_refused(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    state = CoreState.of({"a.core": np.ones((4, 3)), "head.bias": np.ones(5)})
    with pytest.raises(MismatchError) as caught:
        widened(state, Layout.of(shapes))
    assert caught.value.code == "not-nested"


def test_a_missing_dense_entry_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"head\.bias") as caught:
        widened(CoreState.of({"a.core": np.ones((4, 3))}), wide_state().layout)
    assert caught.value.code == "not-nested"

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import attach
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.state import CoreState
from fleet.continual.exhaustion import Streak, gradient_energy, outside

SHAPE = (6, 4, 3)
GROUPED = (8, 2, 3)


def network_of(shape: tuple[int, ...] = SHAPE, groups: int = 1) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv1d(shape[1] * groups, shape[0], shape[2], groups=groups)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(shape, generator=generator))
        conv.bias.zero_()
    return nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()


def windows_of(network: nn.Sequential, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    x = random.standard_normal((count, network[0].in_channels, 12)).astype(np.float32)
    return x, np.arange(count) % 4


def energy(network: nn.Sequential, frame: Frame) -> tuple[float, float]:
    kernels = {"0.weight": network[0].weight.detach().numpy()}
    return gradient_energy(network, {"0": frame}, kernels, *windows_of(network))["0"]


def gradient(network: nn.Sequential) -> np.ndarray:
    x, y = windows_of(network)
    copy = nn.Sequential(*network).double()
    copy.zero_grad()
    functional.cross_entropy(copy(torch.from_numpy(x).double()), torch.from_numpy(y)).backward()
    return copy[0].weight.grad.numpy()


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
@pytest.mark.parametrize(("shape", "groups"), [(SHAPE, 1), (GROUPED, 2)])
def test_it_is_the_least_squares_residual_of_the_gradient_on_the_suffix(
    kind: FrameKind, shape: tuple[int, ...], groups: int
) -> None:
    network = network_of(shape, groups)
    kernel = network[0].weight.detach().numpy()
    frame = make_frame(kernel, kind, 2, groups=groups)
    left, whole = energy(network, frame)
    g = gradient(network_of(shape, groups))
    wanted = 0.0
    for rows, suffix in zip(np.split(g, groups), frame.suffix(kernel), strict=True):
        a, b = suffix.reshape(2, -1).T, rows.reshape(len(rows), -1).T
        wanted += float(np.square(b - a @ np.linalg.lstsq(a, b, rcond=None)[0]).sum())
    assert whole == pytest.approx(np.square(g).sum(), rel=1e-6)
    assert left == pytest.approx(wanted, rel=1e-6)
    assert 0 < left < whole


def test_scaling_a_frame_does_not_change_what_it_reaches() -> None:
    network = network_of()
    frame = make_frame(network[0].weight.detach().numpy(), "random", 2)
    scaled = frame.scaled(np.array([100.0, 0.01]))
    assert energy(network, scaled) == pytest.approx(energy(network, frame), rel=1e-4)


def test_more_columns_never_leave_more_outside_and_all_leave_nothing() -> None:
    network = network_of((13, 2, 2))
    whole = make_frame(network[0].weight.detach().numpy(), "random", 4)
    left = [energy(network, whole.truncated(r))[0] for r in (1, 2, 3, 4)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(0.0, abs=1e-12)
    assert left[0] > 1e-6


def test_what_is_inside_is_what_cores_can_follow() -> None:
    """With orthonormal rows, the energy inside is that of the core's own gradient."""
    network = network_of()
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 2)))[0].T
    frame = Frame("random", 2, 1, rows.reshape(2, 4, 3).astype(np.float32))
    state = CoreState.of({"0.core": np.zeros((6, 2), np.float32)})
    attached = attach(network, {"0": frame}, state, dtype=torch.float64)
    x, y = windows_of(network)
    loss = functional.cross_entropy(
        attached.module(torch.from_numpy(x).double()), torch.from_numpy(y)
    )
    loss.backward()
    left, whole = energy(network, frame)
    inside = float(attached.parameters["0.core"].grad.square().sum())
    assert whole - left == pytest.approx(inside, rel=1e-5)


def test_micro_batches_leave_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of()
    frame = make_frame(network[0].weight.detach().numpy(), "svd", 2)
    one = energy(network, frame)
    monkeypatch.setattr("fleet.continual.exhaustion.MICRO_BATCH", 3)
    assert energy(network, frame) == pytest.approx(one, rel=1e-9)


def test_the_network_that_is_served_is_not_changed() -> None:
    network = network_of().requires_grad_(False)
    before = network[0].weight.clone()
    energy(network, make_frame(before.numpy(), "svd", 2))
    assert torch.equal(network[0].weight, before)
    assert network[0].weight.dtype == torch.float32
    assert not network[0].weight.requires_grad
    assert network[0].weight.grad is None


def test_the_server_divides_sums_and_never_averages_shares() -> None:
    one, two = {"a": (1.0, 2.0), "b": (0.0, 4.0)}, {"a": (3.0, 4.0)}
    share, layers = outside([one, two])
    assert layers == {"a": pytest.approx(4 / 6), "b": 0.0}
    assert share == pytest.approx(4 / 10)
    assert outside([{"a": (0.0, 0.0)}]) == (0.0, {"a": 0.0})
    assert outside([]) == (0.0, {})


@given(
    above=st.lists(st.booleans(), max_size=40),
    rounds=st.integers(1, 4),
    apart=st.integers(1, 8),
)
@settings(deadline=None, max_examples=100)
def test_new_frames_come_after_rounds_in_a_row_and_not_sooner_than_allowed(
    above: list[bool], rounds: int, apart: int
) -> None:
    streak, made = Streak(), []
    for number, high in enumerate(above):
        streak, due = streak.after(0.9 if high else 0.5, above=0.5, rounds=rounds, apart=apart)
        if due:
            made.append(number)
            assert all(above[number - rounds + 1 : number + 1])
            assert number + 1 >= rounds
    assert all(b - a >= max(apart, rounds) for a, b in pairwise(made))
    runs = "".join("x" if high else " " for high in above)
    assert bool(made) == ("x" * rounds in runs)


def test_a_share_at_the_bound_is_not_above_it() -> None:
    assert Streak(2).after(0.5, above=0.5, rounds=3, apart=1) == (Streak(0), False)
    assert Streak(2).after(0.6, above=0.5, rounds=3, apart=1) == (Streak(0, 0), True)

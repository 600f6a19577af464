from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fleet.adapt import learned_frames
from fleet.adapt.attach import adaptable_layers, attach, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.learned_frames import gradient_frames, gradient_grams, learned_frame, people_frames
from fleet.errors import FrameError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.fleet.adapt.lean.comparing import assert_same
from tests.fleet.adapt.lean.networks import NETWORKS, folded, state_of
from tests.fleet.adapt.lean.networks import windows as lean_windows

LEARNED: tuple[FrameKind, ...] = ("gradient", "people")
Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    config = ModelConfig(name="small-cnn", channels=3, classes=4, window=16)
    return fold(build(config, seed=3)).requires_grad_(False)


def batches_of(count: int, windows: int = 6, seed: int = 0, channels: int = 3) -> Batches:
    source = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(windows, channels, 16, generator=source), torch.arange(windows) % 4)
        for _ in range(count)
    ]


def grouped() -> nn.Module:
    """A grouped convolution between two plain ones; its groups are two inputs wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, groups=4),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ).requires_grad_(False)


def stacked(network: nn.Module, layer: str, batches: Batches) -> np.ndarray:
    """All batches' gradients by plain autograd, each of unit norm, one above the other."""
    rows = []
    for x, y in batches:
        own = copy.deepcopy(network).double()
        kernel = own.get_parameter(f"{layer}.weight").requires_grad_(True)
        functional.cross_entropy(own(x.double()), y).backward()
        assert kernel.grad is not None
        matrix = kernel.grad.numpy().reshape(len(kernel), -1)
        rows.append(matrix / np.linalg.norm(matrix))
    return np.concatenate(rows)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_a_gradient_frame_is_the_leading_right_singular_vectors_of_the_stacked_gradients(
    network: nn.Module, layer: str
) -> None:
    batches = batches_of(3)
    frame = gradient_frames(network, 3, batches)[layer]
    _, _, v = np.linalg.svd(stacked(network, layer, batches), full_matrices=False)
    rows = v[:3]
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    wanted = rows * np.sign(peaks)
    np.testing.assert_allclose(frame.array.reshape(3, -1), wanted, rtol=0, atol=1e-6)
    assert (frame.kind, frame.rank, frame.groups) == ("gradient", 3, 1)
    assert frame.array.dtype == np.float32


def test_no_other_frame_of_the_rank_holds_more_of_the_normalised_gradients(
    network: nn.Module,
) -> None:
    batches = batches_of(4)
    stack = stacked(network, "conv2", batches)

    def held(frame: Frame) -> float:
        rows, _ = np.linalg.qr(frame.suffix(kernel)[0].reshape(2, -1).T)
        return float(np.linalg.norm(stack @ rows) ** 2 / np.linalg.norm(stack) ** 2)

    kernel = network.get_parameter("conv2.weight").numpy()
    best = held(gradient_frames(network, 2, batches)["conv2"])
    for kind in ("svd", "tt", "random"):
        assert held(make_frame(kernel, kind, 2, layer="conv2")) < best


def test_groups_share_one_learned_frame() -> None:
    batches = batches_of(2)
    frame = gradient_frames(grouped(), 2, batches)["2"]
    assert (frame.groups, frame.array.shape) == (4, (2, 2, 3))
    kernel = grouped().get_parameter("2.weight").numpy()
    assert frame.suffix(kernel).shape == (4, 2, 2, 3)
    _, sigma, v = np.linalg.svd(stacked(grouped(), "2", batches), full_matrices=False)
    assert sigma[1] > sigma[2]
    overlap = np.abs(frame.array.reshape(2, -1) @ v[:2].T)
    np.testing.assert_allclose(overlap, np.eye(2), atol=1e-5)


@given(seed=st.integers(0, 20), loud=st.floats(2.0, 1e4))
@settings(deadline=None, max_examples=8)
def test_a_person_with_long_gradients_counts_no_more_than_another(seed: int, loud: float) -> None:
    random = np.random.default_rng(seed)
    one, two = (torch.from_numpy(random.normal(size=(4, 5))) for _ in range(2))
    plain, scaled = (
        learned_frames._accumulated(iter([{"a": one}, {"a": two * k}]), ["a"], batches_of(2), "d")
        for k in (1.0, loud)
    )
    np.testing.assert_allclose(scaled["a"], plain["a"], rtol=1e-12, atol=1e-12)
    assert np.trace(plain["a"]) == pytest.approx(2.0)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_micro_batches_do_not_change_the_gradients(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    batches = batches_of(2, windows=9)
    whole = gradient_grams(network, ["conv2"], batches)["conv2"]
    monkeypatch.setattr(learned_frames, "MICRO_BATCH", size)
    parts = gradient_grams(network, ["conv2"], batches)["conv2"]
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)


def test_the_order_of_the_batches_does_not_change_the_space(network: nn.Module) -> None:
    batches = batches_of(3)
    one = gradient_frames(network, 2, batches)["conv3"].array.reshape(2, -1)
    other = gradient_frames(network, 2, batches[::-1])["conv3"].array.reshape(2, -1)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_frames_are_nested(network: nn.Module, kind: FrameKind) -> None:
    batches = batches_of(2)
    wide, narrow = (make_frames(network, kind, r, sources=batches) for r in (3, 2))
    for name, frame in wide.items():
        assert frame.truncated(2).digest == narrow[name].digest


def test_one_small_step_of_fine_tuning_gives_the_gradient_frame(network: nn.Module) -> None:
    batches = batches_of(3)
    one = gradient_frames(network, 2, batches)
    other = people_frames(network, 2, batches, steps=1, learning_rate=1e-2)
    for name, frame in one.items():
        overlap = np.abs(frame.array.reshape(2, -1) @ other[name].array.reshape(2, -1).T)
        np.testing.assert_allclose(overlap, np.eye(2), atol=1e-2)


def test_people_frames_follow_their_seed_and_leave_the_network_alone(network: nn.Module) -> None:
    batches = batches_of(2, windows=80)
    before = {n: p.clone() for n, p in network.named_parameters()}
    one, two, other = (
        people_frames(network, 2, batches, steps=2, learning_rate=0.05, seed=seed)
        for seed in (0, 0, 1)
    )
    assert [f.digest for f in one.values()] == [f.digest for f in two.values()]
    assert [f.digest for f in one.values()] != [f.digest for f in other.values()]
    gradient_frames(network, 2, batches)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("kind", LEARNED)
def test_a_learned_frame_without_sources_is_refused(network: nn.Module, kind: FrameKind) -> None:
    with pytest.raises(FrameError) as caught:
        make_frames(network, kind, 2)
    assert caught.value.code == "frame-needs-data"
    with pytest.raises(FrameError, match="not from a kernel") as caught:
        make_frame(network.get_parameter("conv1.weight").numpy(), kind, 2)
    assert caught.value.code == "frame-needs-data"


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 3, 16), torch.zeros(0).long())]])
def test_sources_without_windows_are_refused(network: nn.Module, batches: Batches) -> None:
    with pytest.raises(FrameError) as caught:
        gradient_frames(network, 2, batches)
    assert caught.value.code == "no-sources"


def test_sources_that_are_not_finite_are_refused_with_their_number(network: nn.Module) -> None:
    batches = batches_of(3)
    batches[1][0][0, 0, 0] = torch.nan
    with pytest.raises(FrameError, match="source batch 1") as caught:
        gradient_frames(network, 2, batches)
    assert caught.value.code == "source-not-finite"


def test_a_rank_beyond_the_directions_that_the_sources_have_is_refused(network: nn.Module) -> None:
    """A channel that is always zero gives its five taps no gradient."""
    batches = batches_of(4)
    for x, _ in batches:
        x[:, 1] = 0.0
    assert gradient_frames(network, {"conv1": 10}, batches)["conv1"].rank == 10
    with pytest.raises(FrameError, match="rank 10, below the rank 11") as caught:
        gradient_frames(network, {"conv1": 11}, batches)
    assert caught.value.code == "rank-deficient"


def test_a_cut_through_equal_directions_is_refused_and_one_beside_it_is_not() -> None:
    gram = np.diag([4.0, 1.0, 1.0, 0.25])
    assert learned_frame(gram, "gradient", 1, shape=(4, 4)).rank == 1
    assert learned_frame(gram, "gradient", 3, shape=(4, 4)).rank == 3
    with pytest.raises(FrameError) as caught:
        learned_frame(gram, "gradient", 2, shape=(4, 4))
    assert caught.value.code == "degenerate-spectrum"


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "concatenating"])
def test_the_lean_trainer_gives_the_gradients_of_autograd_at_a_rank_of_each_layer(
    name: str, kind: FrameKind
) -> None:
    network = folded(NETWORKS[name])
    layers = list(adaptable_layers(network)[0])
    ranks = {layer: 1 + place % 3 for place, layer in enumerate(layers) if place != 1}
    x = lean_windows(8, torch.float32)
    frames = make_frames(network, kind, ranks, x, sources=[(x, torch.arange(8) % 4)])
    assert {n: f.rank for n, f in frames.items()} == ranks
    state = state_of(network, frames)
    assert f"{layers[1]}.core" not in state.arrays
    lean = attach_lean(network, frames, state, dtype=torch.float64, slice_windows=2)
    assert all(note.lean for note in lean.lean.explain())
    plain = attach(network, frames, state, dtype=torch.float64)
    assert_same(lean, plain, lean_windows(), 1e-9)


@pytest.mark.parametrize("kind", LEARNED)
def test_calibrated_learned_channels_have_unit_rms(network: nn.Module, kind: FrameKind) -> None:
    x = torch.randn(30, 3, 16, generator=torch.Generator().manual_seed(4))
    batches = batches_of(2)
    plain = make_frames(network, kind, 2, sources=batches)
    same = make_frames(network, kind, 2, x, sources=batches, scale="none")
    scaled = make_frames(network, kind, 2, x, sources=batches)
    assert [f.digest for f in plain.values()] == [f.digest for f in same.values()]
    z = functional.conv1d(x, torch.from_numpy(scaled["conv1"].array), padding="same")
    np.testing.assert_allclose(z.square().mean(dim=(0, 2)).sqrt(), np.ones(2), rtol=1e-4)

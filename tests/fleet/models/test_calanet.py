from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import adaptable_layers, attach, make_frames
from fleet.adapt.fold import ChannelAffine, fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.state import CoreState
from fleet.errors import FrameError
from fleet.models.calanet import CALANet
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.fleet.adapt.lean.comparing import assert_same
from tests.fleet.adapt.lean.networks import state_of


def network(channels: int = 6, window: int = 60, classes: int = 12, seed: int = 0) -> nn.Module:
    return build(
        ModelConfig(name="calanet", channels=channels, classes=classes, window=window), seed
    )


@cache
def settled() -> nn.Module:
    """A network in float64 whose batch norms have values that matter; not to change."""
    model = network(3, classes=4, seed=3)
    source = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None  # the plain mean over the passes below
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=source)
            nn.init.normal_(module.bias, 0, 0.2, generator=source)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 60, generator=source))
    return model.double().eval()


def windows() -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 60, generator=source, dtype=torch.float64)


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two networks' outputs."""
    with torch.no_grad():
        return float((one(windows()) - other(windows())).abs().max())


def zeros_like(state: CoreState) -> CoreState:
    return CoreState.of({name: np.zeros_like(array) for name, array in state.arrays.items()})


def by_hand(channels: int, window: int, classes: int) -> int:
    stack = 5 * (channels * 64 + 2 * 64 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 192 + 2 * 192 * 192)
    transforms = 16 * 3 * (64 + 128 + 192)
    summaries = 9 * 16 * 16 * (window // 4)
    norms = 2 * (3 * (64 + 128 + 192) + 9 * 16 + 9 * 16)
    return stack + transforms + summaries + norms + 144 * classes + classes


@pytest.mark.parametrize(
    ("channels", "window", "classes", "wanted"),
    [(6, 128, 12, 835_980), (97, 60, 17, 826_657), (3, 100, 6, 818_022)],
)
def test_the_parameters_are_as_many_as_a_count_by_hand_says(
    channels: int, window: int, classes: int, wanted: int
) -> None:
    model = network(channels, window, classes)
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert by_hand(channels, window, classes) == wanted


@pytest.mark.parametrize("window", [60, 100, 128])
@pytest.mark.parametrize("channels", [3, 6, 97])
def test_windows_become_logits_and_every_layer_a_summary_of_its_full_length(
    window: int, channels: int
) -> None:
    model = network(channels, window).eval()
    seen: list[tuple[int, ...]] = []
    for part in ("summary", *(f"aggregations.{index}" for index in range(9))):
        hook = lambda m, i, y: seen.append(tuple(y.shape))  # noqa: E731
        model.get_submodule(part).register_forward_hook(hook)
    with torch.no_grad():
        assert model(torch.zeros(2, channels, window)).shape == (2, 12)
    assert seen == [(2, 16, window // 4)] * 9 + [(2, 144, 1)]


def test_longer_windows_are_averaged_and_shorter_ones_refused() -> None:
    model = network(window=60).eval()
    assert model(torch.zeros(2, 6, 61)).shape == model(torch.zeros(2, 6, 99)).shape == (2, 12)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        model(torch.zeros(2, 6, 59))


@pytest.mark.parametrize("layer", range(9))
def test_every_layer_reaches_the_head_by_a_way_of_its_own(layer: int) -> None:
    model = copy.deepcopy(settled())
    assert isinstance(model, CALANet)
    model.summary.weight.data[16 * layer : 16 * (layer + 1)].zero_()
    assert apart(model, settled()) > 1e-6


def test_the_same_seed_builds_the_same_network() -> None:
    one, two, other = (network(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["summary.weight"], other["summary.weight"])


def test_every_batch_norm_folds_and_the_outputs_stay() -> None:
    raw = settled()
    folded = fold(raw)
    kinds = {type(module) for module in folded.modules()}
    assert not kinds & {nn.BatchNorm1d, ChannelAffine}
    assert apart(folded, raw) <= 1e-9


def test_all_19_convolutions_carry_a_core_the_grouped_one_included() -> None:
    found, left = adaptable_layers(network())
    assert (len(found), left) == (19, {})
    assert found["summary"].groups == 9


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_frames_are_made_and_a_zero_core_changes_nothing(rank: int, kind: FrameKind) -> None:
    folded = fold(settled())
    frames = make_frames(folded, kind, rank)
    zero = zeros_like(state_of(folded, frames))
    assert zero.arrays["summary.core"].shape == (144, rank)
    attached = attach(folded, frames, zero, dtype=torch.float64)
    assert apart(attached.module, folded) <= 1e-9


def test_a_rank_that_a_layer_cannot_carry_is_refused_by_name() -> None:
    folded = fold(network(channels=6))
    assert len(make_frames(folded, "svd", 16)) == 19
    with pytest.raises(FrameError, match=r"aggregations\.0\.lctm: rank 17 is not possible"):
        make_frames(folded, "svd", 17)


@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_lean_gradients_are_those_of_plain_autograd_and_nothing_falls_back(kind: FrameKind) -> None:
    folded = fold(settled())
    frames = make_frames(folded, kind, 2)
    state = state_of(folded, frames, "head.bias")
    lean = attach_lean(folded, frames, state, dtype=torch.float64, slice_windows=2)
    assert_same(lean, attach(folded, frames, state, dtype=torch.float64), windows(), 1e-9)
    notes = lean.lean.explain()
    assert len(notes) > 40
    assert all(note.lean for note in notes)


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Windows whose class is their frequency."""
    rng = np.random.default_rng(0)
    y = np.arange(16) % 4
    phase = rng.uniform(0, 2 * np.pi, (16, 3, 1))
    x = np.sin(np.arange(60) * (0.2 + 0.4 * y[:, None, None]) + phase)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def losses(module: nn.Module, trained: list[nn.Parameter], rate: float) -> list[float]:
    """Take 20 steps of Adam on the whole toy problem."""
    (x, y), found = problem(), []
    stepper = torch.optim.Adam(trained, lr=rate)
    for _ in range(20):
        stepper.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        found.append(float(loss.detach()))
    return found


def test_twenty_steps_of_the_whole_network_lower_the_loss() -> None:
    model = network(3, classes=4)
    found = losses(model, list(model.parameters()), 2e-3)
    assert found[-1] < 0.5 * found[0]


def test_twenty_steps_of_the_cores_lower_the_loss() -> None:
    folded = fold(settled()).float()
    frames = make_frames(folded, "svd", 4, problem()[0])
    lean = attach_lean(folded, frames, zeros_like(state_of(folded, frames)), dtype=torch.float32)
    found = losses(lean.module, list(lean.parameters.values()), 5e-3)
    assert found[-1] < 0.5 * found[0]

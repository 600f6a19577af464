from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import attach, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind, tt_svd
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of
from fleet.adapt.state import CORE_SUFFIX, CoreState, Layout
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.core_variants import (
    OutputBranch,
    TrainBranch,
    best_core,
    core_input,
    core_middle,
    core_residual,
    core_svd_init,
    train_cores,
)
from fleet.peft.tuner import Start, Tuner


def lone(layer: nn.Module, rank: int = 2, kind: FrameKind = "svd") -> Start:
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(3))
    network = nn.Sequential(layer).double().eval()
    return Start(network, fold(network), make_frames(network, kind, rank), rank=rank, seed=0)


def branch_of(tuner: Tuner, start: Start) -> nn.Module:
    return tuner.attach(start).module[0]


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
def test_from_the_svd_value_beside_a_residual_adam_walks_as_from_zero(kind: FrameKind) -> None:
    raw = build(ModelConfig(name="t-resnet", channels=3, classes=4, window=16), seed=2).eval()
    folded = fold(raw).requires_grad_(False)
    frames = make_frames(folded, kind, 2)
    start = Start(raw.double(), folded.double(), frames, rank=2, seed=0)
    tuned = core_residual.attach(start)
    outputs = {f"{n}{CORE_SUFFIX}": (len(folded.get_submodule(n).bias), 2) for n in frames}
    zero = attach(folded, frames, CoreState.zero(Layout.of(outputs)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 16, generator=generator, dtype=torch.float64), torch.arange(8) % 4
    for module, optimiser in (
        (tuned.module, tuned.optimiser("adam", 1e-2)),
        (zero.module, torch.optim.Adam(zero.parameters.values(), lr=1e-2)),
    ):
        for _ in range(5):
            optimiser.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimiser.step()
    wanted = merge(parameters_of(folded), frames, zero.state())
    for name, parameter in tuned.merge().named_parameters():
        np.testing.assert_allclose(parameter.numpy(), wanted[name], rtol=0, atol=1e-6)
    assert max(np.abs(wanted[n] - p).max() for n, p in parameters_of(folded).items()) > 1e-3


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_core_comes_closer_to_the_kernel_than_the_best_one(kind: FrameKind, groups: int) -> None:
    start = lone(nn.Conv1d(4 * groups, 6, 3, groups=groups), kind=kind)
    kernel = start.folded[0].weight.detach().numpy()
    suffix = start.frames["0"].suffix(kernel)
    best = best_core(kernel, suffix)
    rows = suffix.reshape(groups, 2, -1)
    rest = kernel.reshape(groups, 6 // groups, -1) - best.reshape(groups, -1, 2) @ rows
    # The residual of a least-squares solution is orthogonal to what it is made of.
    np.testing.assert_allclose(rest @ rows.transpose(0, 2, 1), 0.0, atol=1e-10)


def test_in_the_svd_frame_the_start_is_the_best_rank_r_kernel_however_the_frame_is_scaled() -> None:
    start = lone(nn.Conv1d(4, 6, 3, bias=False))
    kernel = start.folded[0].weight.detach().numpy().reshape(6, -1)
    u, sigma, v = np.linalg.svd(kernel, full_matrices=False)
    leading = (u[:, :2] * sigma[:2]) @ v[:2]
    scaled = {"0": start.frames["0"].scaled(np.array([[3.0, 0.2]]))}
    for frames in (start.frames, scaled):
        branch = branch_of(core_svd_init, Start(**{**vars(start), "frames": frames}))
        assert isinstance(branch, OutputBranch)
        delta = branch.delta().detach().numpy().reshape(6, -1)
        np.testing.assert_allclose(delta, leading, atol=1e-6)
        moved = branch.kernel().detach().numpy().reshape(6, -1)
        np.testing.assert_allclose(np.linalg.svd(moved)[1][:2], 2 * sigma[:2], rtol=1e-6)


LAYERS = {
    "one-dimensional": (nn.Conv1d(4, 6, 3), (2, 4, 2), (2, 3, 1)),
    "pointwise": (nn.Conv1d(4, 6, 1), (2, 4, 1), (2, 4, 1)),
    "grouped": (nn.Conv1d(8, 6, 5, groups=2), (2, 4, 2), (2, 5, 1)),
    "two-dimensional": (nn.Conv2d(4, 6, (3, 2)), (2, 4, 2), (2, 6, 1)),
    "single input": (nn.Conv1d(1, 6, 3), (2, 3, 1), (2, 3, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_variant_trains_its_own_core_of_the_train(name: str) -> None:
    layer, middle, last = LAYERS[name]
    start = lone(copy.deepcopy(layer))
    for tuner, shape in ((core_middle, middle), (core_input, last)):
        branch = branch_of(tuner, start)
        assert isinstance(branch, TrainBranch)
        assert branch.core.shape == shape


@pytest.mark.parametrize(("tuner", "trained"), [(core_middle, 1), (core_input, 2)])
@pytest.mark.parametrize("name", ["one-dimensional", "grouped", "two-dimensional"])
def test_with_its_own_svd_value_the_trained_core_gives_back_the_train(
    name: str, tuner: Tuner, trained: int
) -> None:
    start = lone(copy.deepcopy(LAYERS[name][0]))
    branch = branch_of(tuner, start)
    kernel = start.folded[0].weight.detach().numpy()
    cores = tt_svd(kernel.reshape(*kernel.shape[:2], math.prod(kernel.shape[2:])), 2)
    with torch.no_grad():
        branch.core.copy_(torch.from_numpy(cores[trained]).view_as(branch.core))
    wanted = np.einsum("oa,aib,bk->oik", *cores).reshape(kernel.shape)
    np.testing.assert_allclose(branch.delta().detach().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("tuner", [core_middle, core_input, core_svd_init, core_residual])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_the_core_are_those_of_finite_differences(tuner: Tuner, groups: int) -> None:
    branch = branch_of(tuner, lone(nn.Conv1d(4 * groups, 6, 3, stride=2, groups=groups)))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4 * groups, 7, dtype=torch.float64, generator=generator)

    def forward(core: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(branch, {"core": core}, (x,))

    assert torch.autograd.gradcheck(forward, (branch.core,))


@pytest.mark.parametrize("tuner", [core_svd_init, core_residual])
def test_without_frames_a_start_at_the_svd_value_is_refused(tuner: Tuner) -> None:
    start = lone(nn.Conv1d(4, 6, 3))
    with pytest.raises(ModelError, match="needs the frames") as caught:
        tuner.attach(Start(**{**vars(start), "frames": {}}))
    assert caught.value.code == "no-frames"


@pytest.mark.parametrize("tuner", [core_middle, core_input])
def test_a_rank_that_no_train_can_have_is_refused_with_the_layer_and_the_limit(
    tuner: Tuner,
) -> None:
    start = lone(nn.Conv1d(1, 6, 3))
    with pytest.raises(ModelError, match=r"0: rank 4 is not possible.*1 to 3") as caught:
        tuner.attach(Start(**{**vars(start), "rank": 4}))
    assert caught.value.code == "rank-too-large"


def test_a_kernel_of_lower_rank_than_asked_is_refused_by_name() -> None:
    layer = nn.Conv1d(4, 6, 3).requires_grad_(False)
    layer.weight.copy_(torch.ones(6, 4, 3))
    with pytest.raises(ModelError, match="conv: the kernel has rank 1"):
        train_cores(layer, 2, "conv")

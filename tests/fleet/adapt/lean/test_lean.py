from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.lean.plan import accumulate
from fleet.adapt.state import CoreState
from fleet.errors import ModelError
from tests.fleet.adapt.lean.comparing import assert_same, distance, pair
from tests.fleet.adapt.lean.networks import (
    NETWORKS,
    MobileLike,
    folded,
    frames_of,
    state_of,
    windows,
)

HEAD = ("head.weight", "head.bias")
# What is trained beside the cores, by case.
DENSE: dict[str, tuple[str, ...]] = {
    "cores": (),
    "and the head": HEAD,
}


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_plain_autograd(name: str, kind: FrameKind, dense: str) -> None:
    plain, lean = pair(name, kind, DENSE[dense])
    assert all(note.lean for note in lean.lean.explain())
    assert_same(lean, plain, windows(), 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_match_in_single_precision(name: str) -> None:
    plain, lean = pair(name, dense=HEAD, dtype=torch.float32)
    assert_same(lean, plain, windows(dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_dense_parameter_can_be_trained_beside_the_cores(name: str) -> None:
    network = folded(NETWORKS[name])
    everything = tuple(dict(network.named_parameters()))
    for kind in ("svd", "tt"):
        plain, lean = pair(name, kind, everything)
        assert_same(lean, plain, windows(), 1e-9)


@pytest.mark.parametrize("slice_windows", [1, 3, 64])
def test_slices_change_nothing(slice_windows: int) -> None:
    plain, lean = pair("t-resnet", slice_windows=slice_windows)
    assert_same(lean, plain, windows(7), 1e-12)


def test_the_inputs_gradient_is_given_where_it_is_asked_for() -> None:
    plain, lean = pair("concatenating")
    x, z = (windows().requires_grad_(True) for _ in range(2))
    plain.module(x).sin().sum().backward()
    lean.module(z).sin().sum().backward()
    assert x.grad is not None
    assert z.grad is not None
    assert distance(z.grad, x.grad) <= 1e-9


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "concatenating"])
def test_neither_the_windows_nor_the_gradient_of_the_logits_is_modified(name: str) -> None:
    _, lean = pair(name)
    x = windows()
    logits = lean.module(x)
    grad = torch.randn_like(logits)
    before = x.clone(), grad.clone(), logits.detach().clone()
    logits.backward(grad)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])
    assert torch.equal(logits.detach(), before[2])


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimisers_steps_are_those_on_the_plain_network(optimiser: Any) -> None:
    plain, lean = pair("t-resnet", dense=HEAD)
    for attached in (plain, lean):
        stepper = optimiser(attached.parameters.values(), lr=1e-2)
        for _ in range(2):
            stepper.zero_grad()
            labels = torch.arange(5) % 4
            functional.cross_entropy(attached.module(windows()), labels).backward()
            stepper.step()
    np.testing.assert_allclose(lean.state().flat(), plain.state().flat(), rtol=1e-6, atol=1e-9)
    assert lean.state().layout == plain.state().layout


def test_micro_batches_add_up_to_the_batch() -> None:
    _, lean = pair("t-resnet", dense=HEAD, slice_windows=None)
    x, y = windows(8), torch.arange(8) % 4
    found = []
    for size in (8, 3, 1):
        accumulate(lean.module, x, y, size)
        found.append({n: p.grad for n, p in lean.parameters.items()})
        for parameter in lean.parameters.values():
            parameter.grad = None
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert gradient is not None
            assert other[name] is not None
            assert distance(other[name], gradient) <= 1e-12


def test_the_small_cnn_keeps_z_and_bits_and_nothing_else() -> None:
    _, lean = pair("small-cnn", rank=4, dtype=torch.float32, slice_windows=None)
    batch, time, size = 8, 24, 4
    lean.module(windows(batch, torch.float32))
    z = size * 4 * batch * (time + time // 2 + time // 4)
    # Two bits per pooled entry of the first two layers, one per entry of the third.
    bits = batch * (2 * 64 * time // 2 + 2 * 128 * time // 4 + 128 * time // 4) // 8
    assert lean.lean.saved_bytes == z + bits


def test_the_residual_net_keeps_z_and_one_bit_per_activation() -> None:
    _, lean = pair("t-resnet", rank=3, dtype=torch.float32, slice_windows=3)
    batch, time = 7, 24
    lean.module(windows(batch, torch.float32))
    positions = batch * time
    assert lean.lean.saved_bytes == 11 * 3 * 4 * positions + 3 * (64 + 128 + 128) * positions // 8


def test_nothing_is_kept_without_a_backward_pass() -> None:
    plain, lean = pair("small-cnn")
    with torch.no_grad():
        logits = lean.module(windows())
    assert lean.lean.saved_bytes == 0
    assert not logits.requires_grad
    assert distance(logits, plain.module(windows()).detach()) <= 1e-12


class CountBackward(TorchDispatchMode):
    """Counts transposed convolutions, and fails on a kernel's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.calls += 1
            assert args[-1] == (True, False, False) or args[-1] == [True, False, False]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("trained", "wanted"),
    [(("conv1", "conv2", "conv3"), 2), (("conv2", "conv3"), 1), (("conv3",), 0), ((), 0)],
)
def test_no_gradient_goes_below_the_lowest_trained_layer(
    trained: tuple[str, ...], wanted: int
) -> None:
    network = folded(NETWORKS["small-cnn"])
    frames = {name: frame for name, frame in frames_of(network).items() if name in trained}
    state = state_of(network, frames, "head.bias")
    lean = attach_lean(network, frames, state, dtype=torch.float64)
    loss = lean.module(windows()).sum()
    with CountBackward() as count:
        loss.backward()
    assert count.calls == wanted


def test_layers_below_everything_trained_keep_nothing() -> None:
    network = folded(NETWORKS["small-cnn"])
    lean = attach_lean(network, {}, state_of(network, {}, "head.bias"), dtype=torch.float64)
    lean.module(windows())
    assert lean.lean.saved_bytes == 0
    assert {note.keeps for note in lean.lean.explain()} == {"nothing"}


def test_running_backwards_twice_is_refused() -> None:
    _, lean = pair("small-cnn")
    loss = lean.module(windows()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()


def test_a_core_that_changes_between_the_passes_is_noticed() -> None:
    _, lean = pair("small-cnn")
    loss = lean.module(windows()).sum()
    with torch.no_grad():
        lean.parameters["conv1.core"].add_(1.0)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_dropout_masks_are_seeded_and_their_gradient_is_the_masks_own() -> None:
    network = folded(MobileLike)
    frames = frames_of(network)
    lean = attach_lean(network, frames, state_of(network, frames), dtype=torch.float64)
    x = windows()
    off = lean.module(x)
    lean.module.train()
    outputs = []
    for seed in (1, 1, 2):
        lean.lean.seed_dropout(seed)
        outputs.append(lean.module(x).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], off.detach())
    core, moved = lean.parameters["stem.core"], 1e-6
    lean.lean.seed_dropout(1)
    lean.module(x).sum().backward()
    assert core.grad is not None
    with torch.no_grad():
        core[0, 0] += moved
    lean.lean.seed_dropout(1)
    slope = (lean.module(x).detach().sum() - outputs[0].sum()) / moved
    assert float(slope) == pytest.approx(float(core.grad[0, 0]), rel=1e-4)
    lean.module.eval()
    with torch.no_grad():
        core[0, 0] -= moved
    torch.testing.assert_close(lean.module(x).detach(), off.detach())


def test_detaching_returns_the_dense_network() -> None:
    network = folded(NETWORKS["t-resnet"])
    frames = frames_of(network)
    lean = attach_lean(network, frames, state_of(network, frames), dtype=torch.float64)
    dense, x = lean.detach(), windows()
    assert type(dense) is type(network)
    torch.testing.assert_close(dense(x), copy.deepcopy(network).double()(x))


def test_a_lean_network_starts_in_evaluation_mode_and_can_be_copied() -> None:
    _, lean = pair("mobile-like")
    assert not any(module.training for module in lean.module.modules())
    other = copy.deepcopy(lean.module)
    with torch.no_grad():
        for parameter in lean.parameters.values():
            parameter.add_(1.0)
    assert not torch.equal(other(windows()), lean.module(windows()))


def test_a_slice_of_no_windows_is_refused() -> None:
    network = folded(NETWORKS["small-cnn"])
    with pytest.raises(ModelError, match="1 window or more"):
        attach_lean(network, {}, CoreState.of({}), dtype=torch.float64, slice_windows=0)

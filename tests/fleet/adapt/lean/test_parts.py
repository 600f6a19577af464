from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.lean.bits import Bits, pack, unpack
from fleet.adapt.lean.graph import Refused, build
from fleet.adapt.lean.memory import dynamic_peak
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.lean.plan import plan_micro_batches
from fleet.adapt.lean.tape import INPUT
from fleet.errors import InputError, ModelError
from tests.fleet.adapt.lean.networks import NETWORKS, folded, frames_of, state_of, windows


class Calls(nn.Module):
    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


# name: (network of no parameters, input shape)
OPS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "max-pool of three": (nn.MaxPool1d(3, 2, padding=1), (5, 4, 11)),
    "max-pool dilated": (nn.MaxPool1d(3, 1, dilation=2), (5, 4, 11)),
    "max-pool ceiling": (nn.MaxPool1d(2, ceil_mode=True), (5, 4, 11)),
    "max-pool of pairs, odd length": (nn.MaxPool1d(2), (5, 4, 11)),
    "max-pool 2-D": (nn.MaxPool2d((2, 3), (1, 2), (1, 1)), (5, 4, 7, 8)),
    "max-pool 2-D of two": (nn.MaxPool2d((1, 2)), (5, 4, 7, 8)),
    "relu, max-pool": (nn.Sequential(nn.ReLU(), nn.MaxPool1d(3)), (5, 4, 11)),
    "relu, max-pool of pairs": (nn.Sequential(nn.ReLU(), nn.MaxPool1d(2)), (5, 4, 11)),
    "average-pool": (nn.AvgPool1d(3, 2, padding=1), (5, 4, 11)),
    "adaptive average-pool": (nn.AdaptiveAvgPool1d(3), (5, 4, 11)),
    "adaptive average-pool 2-D": (nn.AdaptiveAvgPool2d(1), (5, 4, 6, 7)),
    "hard tanh": (nn.Hardtanh(-0.3, 0.4), (5, 4, 11)),
    "pad": (nn.ConstantPad1d((2, -1), 0.5), (5, 4, 11)),
    "pad 2-D": (nn.ZeroPad2d((1, 2, 3, 0)), (5, 4, 6, 7)),
    "flatten": (nn.Flatten(), (5, 4, 11)),
    "clamp below": (Calls(lambda x: x.clamp(min=-0.2)), (5, 4, 11)),
    "transpose": (Calls(lambda x: x.transpose(1, 2).relu()), (5, 4, 11)),
    "permute": (Calls(lambda x: torch.permute(x, (0, 3, 1, 2)).relu()), (5, 4, 6, 7)),
    "view": (Calls(lambda x: x.view(x.size(0), -1)), (5, 4, 11)),
    "reshape": (Calls(lambda x: x.reshape(x.shape[0], 2, 22)), (5, 4, 11)),
    "unsqueeze and squeeze": (Calls(lambda x: x.unsqueeze(-1).relu().squeeze(3)), (5, 4, 11)),
    "a sum with itself": (Calls(lambda x: x.relu() + x + x), (5, 4, 11)),
    "a broadcast sum": (Calls(lambda x: x + x.mean(-1, keepdim=True)), (5, 4, 11)),
    "concatenated twice": (Calls(lambda x: torch.cat([x, x.relu(), x], dim=2)), (5, 4, 11)),
    "functional pooling": (Calls(lambda x: functional.max_pool1d(x.relu(), 2)), (5, 4, 11)),
    "dropout that is off": (Calls(lambda x: functional.dropout(x, 0.5, False).relu()), (5, 4)),
}


@pytest.mark.parametrize("name", OPS)
def test_each_operation_has_autograds_output_and_gradient(name: str) -> None:
    network, shape = OPS[name]
    source = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=source, dtype=torch.float64, requires_grad=True)
    tape, before = build(network.eval(), {}), x.detach().clone()
    assert tape.sliceable
    wanted = tape.wanted(input_gradient=True)
    y = network(x)
    got, records = tape.forward(x.detach(), 2, wanted)
    torch.testing.assert_close(got, y.detach())
    grad = torch.randn(y.shape, generator=source, dtype=torch.float64)
    kept_grad = grad.clone()
    (expected,) = torch.autograd.grad(y, x, grad)
    _, dx = tape.backward(grad, 2, records, wanted)
    torch.testing.assert_close(dx, expected)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(grad, kept_grad, rtol=0, atol=0)
    assert records == []


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x.tanh(), "no lean form of tanh"),
        (lambda x: x + 1.0, "add with other arguments"),
        (lambda x: x.mean(), "a mean over the batch"),
        (lambda x: x.view(-1, 4), "does not start with size"),
        (lambda x: torch.cat([x, x]), "concatenating batches"),
        (lambda x: torch.add(x, x, alpha=2), "a scaled sum"),
        (lambda x: functional.pad(x, (1, 1), mode="circular"), "padding of mode 'circular'"),
        (nn.MaxPool2d(17), "more than 256 entries"),
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'"),
        (nn.Conv1d(4, 4, 4, padding="same"), "uneven"),
    ],
)
def test_what_is_not_lean_has_a_reason(call: Any, reason: str) -> None:
    network = call if isinstance(call, nn.Module) else Calls(call)
    (step,) = build(nn.Sequential(network), {}).steps
    assert reason in step.reason


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x.chunk(2)[0], "several tensors"),
        (lambda x: x.reshape(4, x.size(1)), "depends on shapes"),
        (lambda x: x.relu_() if x.sum() > 0 else x, "cannot be followed"),
        (lambda x: x + functional.relu(x, inplace=True), "writes in place"),
        (lambda x: (x, x), "something other than one tensor"),
    ],
)
def test_what_no_tape_can_hold_is_refused(call: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        build(Calls(call), {})


def test_an_operation_across_windows_is_refused() -> None:
    tape = build(Calls(lambda x: x.mean(dim=-2, keepdim=True)), {})
    with pytest.raises(ModelError, match="across the windows"):
        tape.forward(torch.zeros(4, 4), 2)


def test_a_fused_relu_leaves_one_step() -> None:
    (step,) = build(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2)), {}).steps
    assert step.op.keeps == "one argmax bit and one sign bit per pooled entry"
    assert step.inputs == (INPUT,)
    shared = Calls(lambda x: (y := x.relu()) + functional.max_pool1d(y, 3, 1, 1))
    assert len(build(shared, {}).steps) == 3


@pytest.mark.parametrize("entries", [0, 1, 7, 8, 9, 64])
def test_bits_come_back_as_they_were_on_every_device(entries: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random(entries) > 0.5)
    assert torch.equal(Bits.of(mask).factors().bool(), mask)
    packed = pack(mask)
    assert packed.nbytes == Bits.of(mask).nbytes == -(-entries // 8)
    np.testing.assert_array_equal(packed.numpy(), Bits.of(mask).packed)
    assert torch.equal(unpack(packed, entries).bool(), mask)


def test_bits_keep_the_order_in_memory() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).permute(0, 2, 1)
    for bits in (Bits.of(x > 0), Bits.positive(x)):
        assert bits.factors().stride() == x.stride()
        assert torch.equal(bits.factors().bool(), x > 0)


def test_the_dynamic_peak_is_what_was_held_at_once() -> None:
    def step() -> None:
        a = torch.ones(1 << 20)
        b = a + 1
        del a
        b.add_(1)

    assert dynamic_peak(step) == pytest.approx(2 * 4 * (1 << 20), rel=0.01)
    assert dynamic_peak(lambda: np.ones(1 << 18)) == pytest.approx(8 << 18, rel=0.01)


def test_micro_batches_fit_their_budget_and_the_plan_says_so() -> None:
    network = folded(NETWORKS["small-cnn"])
    frames = frames_of(network)
    state = state_of(network, frames)
    lean = attach_lean(network, frames, state, dtype=torch.float32).lean
    window = windows(1, torch.float32)[0]
    plans = partial(plan_micro_batches, lean, window, 8)
    whole = plans(1 << 30)
    assert (whole.windows, whole.parts) == (8, 1)
    less = plans(whole.peak_bytes * 3 // 4)
    assert 1 <= less.windows < 8
    assert less.peak_bytes <= less.budget_bytes
    assert str(less).startswith(f"batch 8 in {less.parts} micro-batch(es) of {less.windows}: ")
    assert all(parameter.grad is None for parameter in lean.parameters())
    with pytest.raises(InputError, match="training on one window takes") as caught:
        plans(1000)
    assert caught.value.code == "memory-budget-too-small"

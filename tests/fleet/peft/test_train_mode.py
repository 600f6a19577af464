from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import make_frames
from fleet.adapt.fold import BatchNorm
from fleet.adapt.frames import FrameKind
from fleet.errors import ModelError
from fleet.peft.train_mode import core_bn, full_bn
from fleet.peft.tuner import Start, Tuned, Tuner
from fleet.peft.tuners import find

MakeStart = Callable[..., Start]
BOTH = pytest.mark.parametrize("tuner", [full_bn, core_bn], ids=["full-bn", "core-bn"])
STATISTICS = 2 * 4 * (64 + 128 + 128)  # of small-cnn: means and variances, float32


def framed(start: Start, kind: FrameKind = "svd") -> Start:
    windows = torch.randn(12, 3, 16, generator=torch.Generator().manual_seed(9))
    return dataclasses.replace(start, frames=make_frames(start.folded, kind, 2, windows))


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, BatchNorm)]


def step(tuned: Tuned, x: torch.Tensor, steps: int = 3, rate: float = 1e-2) -> None:
    stepper = tuned.optimiser("adam", rate)
    for _ in range(steps):
        stepper.zero_grad(set_to_none=True)
        functional.cross_entropy(tuned.module(x), torch.arange(len(x)) % 4).backward()
        stepper.step()


@BOTH
@pytest.mark.parametrize("backbone", ["small-cnn", "t-resnet"])
def test_what_is_served_at_the_start_is_the_folded_base(
    tuner: Tuner, backbone: str, start_of: MakeStart, x: torch.Tensor
) -> None:
    start = framed(start_of(backbone))
    served = tuner.attach(start).served()
    torch.testing.assert_close(served(x.float()), start.folded(x.float()), rtol=1e-5, atol=1e-5)
    assert not norms(served)
    assert not any(p.requires_grad for p in served.parameters())


@BOTH
def test_a_batch_is_normalised_by_its_own_statistics(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    tuned, x = tuner.attach(framed(start_of())), x.float()
    alone = tuned.module(x[:3])
    assert not torch.allclose(tuned.module(x)[:3], alone, atol=1e-3)
    assert not torch.allclose(framed(start_of()).folded(x[:3]), alone, atol=1e-3)
    assert all(norm.training for norm in norms(tuned.module))


@BOTH
def test_running_statistics_move_into_what_is_served_without_a_gradient(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    start = framed(start_of())
    tuned = tuner.attach(start)
    before = tuned.served()(x.float())
    first, given = norms(tuned.module)[0], norms(start.raw)[0]
    old = given.running_mean.clone()
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tuned.module(x.float())
    mean = seen[0].transpose(0, 1).flatten(1).mean(dim=1)
    torch.testing.assert_close(first.running_mean, 0.9 * old + 0.1 * mean)
    assert torch.equal(given.running_mean, old)
    assert not torch.allclose(tuned.served()(x.float()), before, atol=1e-3)


@BOTH
def test_the_served_network_is_the_trained_one_in_evaluation_mode(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    tuned = tuner.attach(framed(start_of()))
    step(tuned, x.float())
    served = tuned.served()(x.float())
    assert all(norm.training for norm in norms(tuned.module)), "serving must not end the training"
    torch.testing.assert_close(served, tuned.module.eval()(x.float()), rtol=1e-4, atol=1e-4)


@BOTH
def test_training_leaves_the_base_alone(tuner: Tuner, start_of: MakeStart, x: torch.Tensor) -> None:
    start = framed(start_of())
    before = {n: t.clone() for n, t in start.raw.state_dict().items()}
    step(tuner.attach(start), x.float())
    assert all(torch.equal(t, before[n]) for n, t in start.raw.state_dict().items())


def test_an_update_holds_what_is_trained_and_the_running_statistics(start_of: MakeStart) -> None:
    start = framed(start_of())
    whole = sum(p.numel() for p in start.raw.parameters())
    assert full_bn.attach(start).update_bytes() == 4 * whole + STATISTICS
    cores = 2 * (64 + 128 + 128)
    assert core_bn.attach(start).update_bytes() == 4 * cores + STATISTICS


def test_a_head_beside_cores_is_trained_and_served(start_of: MakeStart, x: torch.Tensor) -> None:
    start = framed(start_of())
    tuned = find("core-bn+head").attach(start)
    step(tuned, x.float())
    served = tuned.served()
    assert torch.equal(served.head.bias, tuned.module.head.bias)
    assert not torch.allclose(served.head.weight, start.folded.head.weight, atol=1e-3)


def test_core_bn_refuses_frames_that_raw_kernels_cannot_have(start_of: MakeStart) -> None:
    with pytest.raises(ModelError, match="needs frames") as caught:
        core_bn.attach(start_of())
    assert caught.value.code == "no-frames"
    learned = framed(start_of(), "random")
    frames = {n: dataclasses.replace(f, kind="people") for n, f in learned.frames.items()}
    with pytest.raises(ModelError, match="people frame") as caught:
        core_bn.attach(dataclasses.replace(learned, frames=frames))
    assert caught.value.code == "raw-frames"

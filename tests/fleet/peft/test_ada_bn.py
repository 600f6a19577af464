from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fleet.adapt.fold import BatchNorm
from fleet.errors import InputError, ModelError
from fleet.peft.ada_bn import adabn, calibrate
from fleet.peft.tuner import Start

MakeStart = Callable[..., Start]


def windows(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    drift = torch.linspace(-3, 3, n)[:, None, None]  # so that batches differ
    return (torch.randn(n, 3, 16, generator=generator) * 2 + drift).to(dtype)


@pytest.mark.parametrize("batch", [4, 7, 256])
def test_the_first_norm_holds_the_statistics_of_all_windows_at_any_batch(
    batch: int, start_of: MakeStart
) -> None:
    x = windows(45)
    norm = calibrate(start_of("t-resnet").raw, x, batch=batch).blocks[0].norm_in
    values = x.numpy().astype(np.float64).transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(norm.running_mean.numpy(), values.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), values.var(axis=1, ddof=1), rtol=1e-6)


def test_in_one_batch_every_norm_holds_what_it_sees_on_the_windows(start_of: MakeStart) -> None:
    x = windows(300, torch.float64)  # many values, so that var · n/(n-1) is nearly var
    calibrated = calibrate(start_of("t-resnet", dtype=torch.float64).raw, x)
    seen: dict[str, torch.Tensor] = {}
    norms = {n: m for n, m in calibrated.named_modules() if isinstance(m, BatchNorm)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda m, inputs, name=name: seen.update({name: inputs[0]}))
    calibrated(x)
    for name, norm in norms.items():
        values = seen[name].transpose(0, 1).flatten(1)
        scale = values.std(dim=1)
        assert ((norm.running_mean - values.mean(dim=1)).abs() < 5e-3 * scale).all()
        torch.testing.assert_close(norm.running_var, values.var(dim=1), rtol=5e-3, atol=0)


def test_calibrating_in_one_batch_is_what_torch_tracks_in_training_mode(
    start_of: MakeStart,
) -> None:
    x = windows(20, torch.float64)
    raw = start_of("t-resnet", dtype=torch.float64).raw
    oracle = copy.deepcopy(raw).train()
    for module in oracle.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    oracle(x)
    for name, buffer in calibrate(raw, x).named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, oracle.get_buffer(name), rtol=1e-10, atol=1e-10)


def test_calibration_repeats_itself_bit_for_bit_and_leaves_its_argument_alone(
    start_of: MakeStart,
) -> None:
    x, raw = windows(45), start_of("t-resnet").raw
    before = copy.deepcopy(raw.state_dict())
    one, two = (calibrate(raw, x, batch=8) for _ in range(2))
    again = calibrate(one, x, batch=8)  # earlier statistics have no say
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
        assert torch.equal(tensor, again.state_dict()[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in raw.state_dict().items())
    assert not one.training
    norms = [m for m in one.modules() if isinstance(m, BatchNorm)]
    assert all(not m.training and m.track_running_stats for m in norms)
    assert not any(m._forward_pre_hooks for m in norms)


def test_the_calibrated_network_is_merged_and_nothing_is_trained(
    start_of: MakeStart, same_graph: Callable[[nn.Module, nn.Module], bool]
) -> None:
    x, start = windows(45, torch.float64), start_of("t-resnet", dtype=torch.float64)
    tuned = adabn.attach(start)
    held = tuned.module
    tuned.calibrate(x)
    assert tuned.module is held
    wanted = calibrate(start.raw, x)(x)
    assert (wanted - start.folded(x)).abs().max() > 1e-2
    torch.testing.assert_close(tuned.module(x), wanted, rtol=0, atol=0)
    torch.testing.assert_close(tuned.merge()(x), wanted, rtol=1e-9, atol=1e-9)
    assert same_graph(tuned.merge(), start.folded)
    assert not tuned.trainable()
    with pytest.raises(ModelError, match="no gradient steps") as caught:
        tuned.optimiser("adam", 0.1)
    assert caught.value.code == "nothing-to-train"


def test_a_shift_and_a_gain_of_the_channels_are_undone_at_the_first_norm(
    start_of: MakeStart,
) -> None:
    raw, x = start_of("t-resnet", dtype=torch.float64).raw, windows(60, torch.float64)
    moved = 3 * x + torch.tensor([1.0, -2.0, 0.5])[:, None]
    plain, shifted = calibrate(raw, x)(x), calibrate(raw, moved)(moved)
    torch.testing.assert_close(shifted, plain, rtol=1e-4, atol=1e-4)


def test_an_update_is_all_means_and_variances(start_of: MakeStart) -> None:
    tuned = adabn.attach(start_of())
    assert tuned.update_bytes() == 2 * 4 * (64 + 128 + 128)
    tuned.unfreeze(("head.bias",))
    assert tuned.update_bytes() == 2 * 4 * (64 + 128 + 128) + 4 * 4
    assert isinstance(tuned.optimiser("adam", 0.1), torch.optim.Adam)


@pytest.mark.parametrize(("n", "batch"), [(1, 256), (0, 256), (9, 1)])
def test_fewer_than_two_windows_make_no_statistics(n: int, batch: int, start_of: MakeStart) -> None:
    with pytest.raises(InputError, match="two windows") as caught:
        calibrate(start_of().raw, windows(max(n, 1))[:n], batch=batch)
    assert caught.value.code == "too-few-windows"

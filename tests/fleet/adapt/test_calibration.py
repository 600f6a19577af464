from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fleet.adapt.attach import CoreLayer, attach, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.state import CORE_SUFFIX, CoreState, Layout
from fleet.models.config import ModelConfig
from fleet.models.registry import build

KINDS: tuple[FrameKind, ...] = ("svd", "tt", "random")


def folded(name: str = "small-cnn") -> nn.Module:
    return fold(build(ModelConfig(name=name, channels=6, classes=5, window=32), seed=3))


def windows(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 6, 32, generator=torch.Generator().manual_seed(0))


def zero_state(network: nn.Module, rank: int) -> CoreState:
    frames = make_frames(network, "svd", rank)
    outputs = {n: network.get_submodule(n).get_parameter("weight").shape[0] for n in frames}
    return CoreState.zero(Layout.of({n + CORE_SUFFIX: (outputs[n], rank) for n in frames}))


def bottlenecks(network: nn.Module, kind: FrameKind, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """RMS of every bottleneck channel, by layer, read with hooks of the test's own."""
    frames = make_frames(network, kind, 3, x)
    attached = attach(network, frames, zero_state(network, 3), dtype=torch.float64)
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        def hook(layer: CoreLayer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            z = layer.bottleneck(inputs[0], layer.rows(inputs[0]))
            found[name] = z.square().mean(dim=(0, 1, 3)).sqrt()

        return hook

    for name in frames:
        attached.module.get_submodule(name).register_forward_hook(keep(name))  # type: ignore[arg-type]
    with torch.inference_mode():
        attached.module(x.double())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["small-cnn", "t-resnet"])
def test_calibrated_bottleneck_channels_have_unit_rms_on_the_source_windows(
    kind: FrameKind, model: str
) -> None:
    for name, rms in bottlenecks(folded(model), kind, windows()).items():
        assert rms == pytest.approx(np.ones(3), rel=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_leaves_the_space_that_cores_reach_as_it_is(kind: FrameKind) -> None:
    network = folded()
    plain, scaled = make_frames(network, kind, 3), make_frames(network, kind, 3, windows())
    for name, frame in plain.items():
        kernel = network.get_submodule(name).get_parameter("weight").detach().numpy()
        before = frame.suffix(kernel)[0].reshape(3, -1)
        after = scaled[name].suffix(kernel)[0].reshape(3, -1)
        ratios = np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
        assert after == pytest.approx(before * ratios[:, None], rel=1e-5, abs=1e-6)
        assert (ratios > 0).all()


def test_calibration_changes_neither_the_network_nor_what_a_zero_core_computes() -> None:
    network, x = folded(), windows(8)
    before = {n: p.clone() for n, p in network.named_parameters()}
    frames = make_frames(network, "svd", 3, x)
    attached = attach(network, frames, zero_state(network, 3), dtype=torch.float32)
    with torch.inference_mode():
        assert torch.allclose(attached.module(x), network(x), atol=1e-6)
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters())


def test_a_layer_that_does_not_respond_keeps_finite_frames() -> None:
    frames = make_frames(folded(), "svd", 3, torch.zeros(4, 6, 32))
    assert all(np.isfinite(frame.array).all() for frame in frames.values())


def test_calibration_is_the_same_to_the_bit_when_it_is_repeated() -> None:
    one, two = (make_frames(folded(), "svd", 3, windows()) for _ in range(2))
    assert [f.digest for f in one.values()] == [f.digest for f in two.values()]

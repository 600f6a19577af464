from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import Attached, CoreLayer, adaptable_layers, attach
from fleet.adapt.core_layer import single_thread
from fleet.adapt.digest import digest_arrays
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, MismatchError
from fleet.models.config import ModelConfig
from fleet.models.registry import build

KINDS: tuple[FrameKind, ...] = ("svd", "tt", "random")

# name: (layer, input shape)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 11)),
    "conv1d without a bias": (lambda: nn.Conv1d(4, 6, 3, bias=False), (2, 4, 11)),
    "conv1d strided": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2), (2, 4, 11)),
    "conv1d dilated": (lambda: nn.Conv1d(4, 6, 3, dilation=3, padding="same"), (2, 4, 11)),
    "conv1d circular": (
        lambda: nn.Conv1d(4, 6, 5, padding=2, padding_mode="circular"),
        (2, 4, 11),
    ),
    "conv1d pointwise": (lambda: nn.Conv1d(4, 6, 1), (2, 4, 11)),
    "conv1d grouped": (lambda: nn.Conv1d(4, 8, 3, padding=1, groups=2), (2, 4, 11)),
    "conv1d depthwise, two each": (lambda: nn.Conv1d(4, 8, 3, groups=4), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 6)),
    "conv2d mixed": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
        (2, 4, 7, 6),
    ),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 6)),
    "linear": (lambda: nn.Linear(5, 6), (3, 5)),
    "linear over time": (lambda: nn.Linear(5, 6, bias=False), (3, 2, 4, 5)),
}


def tensor_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def core_of(outputs: int, rank: int, seed: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((outputs, rank))


def one_layer(case: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    make, shape = LAYERS[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(make()).double(), shape


def frames_of(network: nn.Sequential, kind: FrameKind, rank: int) -> dict[str, Frame]:
    layer: Any = network[0]
    kernel = layer.weight.detach().numpy()
    return {"0": make_frame(kernel, kind, rank, groups=getattr(layer, "groups", 1))}


def float64(network: nn.Module, frames: dict[str, Frame], core: Any) -> Attached:
    return attach(network, frames, CoreState.of({"0.core": core}), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_the_two_paths_give_what_the_merged_layer_gives(case: str, kind: FrameKind) -> None:
    network, shape = one_layer(case)
    frames = frames_of(network, kind, 2)
    state = CoreState.of({"0.core": core_of(len(network[0].weight), 2)})
    attached = attach(network, frames, state, dtype=torch.float64)
    merged = with_parameters(copy.deepcopy(network), merge(parameters_of(network), frames, state))
    x = tensor_of(*shape)
    wanted = merged(x)
    assert (wanted - network(x)).abs().max() > 0.1
    torch.testing.assert_close(attached.module(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_a_zero_core_gives_what_the_base_gives(case: str, kind: FrameKind) -> None:
    network, shape = one_layer(case)
    attached = float64(network, frames_of(network, kind, 2), np.zeros((len(network[0].weight), 2)))
    x = tensor_of(*shape)
    # Adding the bias after the convolution instead of in it may round differently.
    torch.testing.assert_close(attached.module(x), network(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LAYERS)
def test_the_cores_gradient_is_that_through_the_materialised_kernel(
    case: str, kind: FrameKind
) -> None:
    network, shape = one_layer(case)
    layer: Any = network[0]
    frames = frames_of(network, kind, 2)
    core = core_of(len(layer.weight), 2)
    attached = float64(network, frames, core)
    x = tensor_of(*shape)
    attached.module(x).sin().sum().backward()
    got = attached.parameters["0.core"].grad

    oracle = torch.from_numpy(core).requires_grad_(True)
    suffix = torch.from_numpy(frames["0"].suffix(layer.weight.detach().numpy()).copy())
    grouped = oracle.view(suffix.shape[0], -1, 2)
    delta = torch.einsum("gor,gr...->go...", grouped, suffix)
    kernel = layer.weight + delta.reshape(layer.weight.shape)
    if isinstance(layer, nn.Linear):
        y = functional.linear(x, kernel, layer.bias)
    else:
        y = layer._conv_forward(x, kernel, layer.bias)
    y.sin().sum().backward()
    assert got is not None
    torch.testing.assert_close(got, oracle.grad, rtol=1e-9, atol=1e-9)


def test_the_svd_frame_runs_no_second_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    network, shape = one_layer("conv1d")
    forward = nn.Conv1d._conv_forward
    monkeypatch.setattr(
        nn.Conv1d, "_conv_forward", lambda *given: calls.append(1) or forward(*given)
    )
    for kind, wanted in (("svd", 1), ("tt", 2)):
        attached = float64(network, frames_of(network, kind, 2), np.zeros((6, 2)))
        calls.clear()
        attached.module(tensor_of(*shape))
        assert len(calls) == wanted


def test_depthwise_layers_take_a_frame_that_is_given_explicitly() -> None:
    network = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4)).double()
    frames = {"0": make_frame(network[0].weight.detach().numpy(), "svd", 1, groups=4)}
    core = np.array([[0.0], [1.0], [-0.5], [2.0]])
    attached = float64(network, frames, core)
    x = tensor_of(2, 4, 9)
    bias = network[0].bias.view(-1, 1)
    # M is ±1 here, so a core is a gain per channel: y = (1 + C·M)·u + b.
    gain = 1 + torch.from_numpy(core * frames["0"].array[:, 0].astype(np.float64))
    torch.testing.assert_close(attached.module(x), (network(x) - bias) * gain + bias)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3)
        self.block = nn.Sequential(nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 8, 1))
        self.image = nn.Conv2d(1, 4, 3, padding=1)
        self.multiplied = nn.Conv1d(6, 12, 3, groups=6)
        self.head = nn.Linear(8, 2)


def test_every_convolution_but_a_depthwise_one_is_adaptable_and_the_reason_is_given() -> None:
    found, left = adaptable_layers(Mixed())
    assert set(found) == {"conv", "block.1", "image"}
    assert set(left) == {"block.0", "multiplied"}
    assert all("depthwise" in reason for reason in left.values())


def test_the_shortcuts_of_a_residual_network_are_adaptable_and_its_head_is_not() -> None:
    network = fold(build(ModelConfig(name="t-resnet", channels=5, classes=4, window=16)))
    found, left = adaptable_layers(network)
    assert len(found) == 11
    assert {"blocks.0.shortcut", "blocks.1.shortcut"} <= set(found)
    assert "head" not in found
    assert left == {}


def test_only_the_states_entries_require_gradients(small: Any) -> None:
    frames = {"conv2": make_frame(small.folded.conv2.weight.numpy(), "svd", 2)}
    state = CoreState.of({"conv2.core": np.zeros((128, 2), "f4"), "head.bias": np.zeros(4, "f4")})
    unfrozen = copy.deepcopy(small.folded).requires_grad_(True)
    attached = attach(unfrozen, frames, state, dtype=torch.float32)
    trainable = {id(p) for p in attached.module.parameters() if p.requires_grad}
    assert set(attached.parameters) == {"conv2.core", "head.bias"}
    assert trainable == {id(p) for p in attached.parameters.values()}
    attached.module(torch.randn(2, 3, 16)).square().sum().backward()
    for parameter in attached.module.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trainable)


def test_the_attached_network_is_in_evaluation_mode(small: Any) -> None:
    training = copy.deepcopy(small.folded).train()
    attached = attach(training, {}, CoreState.of({}), dtype=torch.float32)
    assert training.training
    assert not any(module.training for module in attached.module.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_an_attached_copy_changes_neither_the_network_nor_the_frames(
    small: Any, dtype: torch.dtype
) -> None:
    before = digest_arrays(parameters_of(small.folded))
    frames = {
        name: make_frame(small.folded.get_submodule(name).weight.numpy(), "svd", 2)
        for name in ("conv1", "conv2", "conv3")
    }
    bits = {name: frame.array.tobytes() for name, frame in frames.items()}
    cores = {f"{name}.core": np.zeros((frame.array.shape[2], 2)) for name, frame in frames.items()}
    state = CoreState.of(cores | {"head.weight": np.zeros((4, 128))})
    attached = attach(small.folded, frames, state, dtype=dtype)
    with torch.no_grad():
        for tensor in [*attached.module.parameters(), *attached.module.buffers()]:
            tensor.add_(1.0)
    assert digest_arrays(parameters_of(small.folded)) == before
    assert not any(isinstance(module, CoreLayer) for module in small.folded.modules())
    assert {name: frame.array.tobytes() for name, frame in frames.items()} == bits
    assert state.norm == 0.0


def test_the_state_starts_as_given_and_follows_the_cores(small: Any) -> None:
    frames = {"conv1": make_frame(small.folded.conv1.weight.numpy(), "svd", 2)}
    core = core_of(64, 2).astype("f4")
    state = CoreState.of({"conv1.core": core})
    attached = attach(small.folded, frames, state, dtype=torch.float32)
    assert attached.state().digest == state.digest
    with torch.no_grad():
        attached.parameters["conv1.core"].add_(1.0)
    np.testing.assert_array_equal(attached.state().arrays["conv1.core"], core + np.float32(1))


def test_a_dense_delta_moves_its_parameter_from_the_bases(small: Any) -> None:
    delta = np.arange(4, dtype=np.float32)
    attached = attach(small.folded, {}, CoreState.of({"head.bias": delta}), dtype=torch.float32)
    torch.testing.assert_close(
        attached.module.head.bias.detach(), small.folded.head.bias + torch.from_numpy(delta)
    )


def test_the_state_is_a_snapshot(small: Any) -> None:
    state = CoreState.of({"head.bias": np.zeros(4, "f4")})
    attached = attach(small.folded, {}, state, dtype=torch.float32)
    before = attached.state()
    digest = before.flat().tobytes()
    with torch.no_grad():
        attached.parameters["head.bias"].add_(1.0)
    assert before.flat().tobytes() == digest
    np.testing.assert_allclose((attached.state() - before).flat(), np.ones(4), atol=1e-6)


def test_detaching_returns_the_dense_network(small: Any) -> None:
    names = ("conv1", "conv2", "conv3")
    frames = {n: make_frame(small.folded.get_submodule(n).weight.numpy(), "tt", 2) for n in names}
    cores = {f"{n}.core": np.ones((small.folded.get_submodule(n).out_channels, 2)) for n in names}
    attached = attach(small.folded, frames, CoreState.of(cores), dtype=torch.float32)
    assert sum(isinstance(m, CoreLayer) for m in attached.module.modules()) == 3
    dense = attached.detach()
    assert not any(isinstance(m, CoreLayer) for m in dense.modules())
    assert digest_arrays(parameters_of(dense)) == digest_arrays(parameters_of(small.folded))


def test_a_core_narrower_than_its_frame_uses_the_leading_directions() -> None:
    network, shape = one_layer("conv1d grouped")
    frames = frames_of(network, "svd", 3)
    core = core_of(8, 2)
    narrow = float64(network, frames, core)
    padded = float64(network, frames, np.concatenate([core, np.zeros((8, 1))], axis=1))
    x = tensor_of(*shape)
    assert narrow.module[0].mixing.shape == (2, 2, 4)
    torch.testing.assert_close(narrow.module(x), padded.module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv9.core", (64, 2)),
        ("conv2.core", (128, 2)),
        ("conv1", (64, 2)),
        ("head.bias", (5,)),
        ("head.bias", (1,)),
        ("norm1.weight", (64,)),
    ],
)
def test_an_entry_that_fits_nothing_is_refused(
    small: Any, name: str, shape: tuple[int, ...]
) -> None:
    frames = {"conv1": make_frame(small.folded.conv1.weight.numpy(), "svd", 2)}
    with pytest.raises(MismatchError, match="fits no layer") as caught:
        attach(small.folded, frames, CoreState.of({name: np.zeros(shape)}), dtype=torch.float32)
    assert caught.value.code == "unknown-entry"


@pytest.mark.parametrize("shape", [(63, 2), (64,), (64, 2, 1), (64, 3)])
def test_a_core_that_does_not_fit_its_layer_is_refused(small: Any, shape: tuple[int, ...]) -> None:
    frames = {"conv1": make_frame(small.folded.conv1.weight.numpy(), "svd", 2)}
    state = CoreState.of({"conv1.core": np.zeros(shape)})
    with pytest.raises(FleetError) as caught:
        attach(small.folded, frames, state, dtype=torch.float32)
    assert caught.value.code in ("core-shape", "rank-too-large")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_network_trains_towards_what_its_merge_serves(small: Any, kind: FrameKind) -> None:
    folded = copy.deepcopy(small.folded).double()
    names = ("conv1", "conv2", "conv3")
    frames = {n: make_frame(folded.get_submodule(n).weight.numpy(), kind, 2) for n in names}
    outputs = {n: folded.get_submodule(n).out_channels for n in names}
    zero = CoreState.of({f"{n}.core": np.zeros((outputs[n], 2)) for n in names})
    attached = attach(folded, frames, zero, dtype=torch.float64)
    x, y = tensor_of(8, 3, 16), torch.arange(8) % 4
    stepper = torch.optim.SGD(attached.parameters.values(), lr=1e-3)
    losses = []
    for _ in range(3):
        stepper.zero_grad()
        loss = functional.cross_entropy(attached.module(x), y)
        loss.backward()
        stepper.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    merged = merge(parameters_of(folded), frames, attached.state())
    served = with_parameters(copy.deepcopy(folded), merged)
    torch.testing.assert_close(served(x), attached.module(x), rtol=1e-9, atol=1e-9)


def test_the_limit_to_one_thread_holds_until_the_last_holder_is_gone() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas() -> set[int]:
        found = threadpoolctl.threadpool_info()
        return {each["num_threads"] for each in found if each["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, "blas"):
        before = blas()
        with single_thread():
            with single_thread():
                assert blas() == {1}
            assert blas() == {1}
        assert blas() == before

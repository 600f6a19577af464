from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.learner import Learner, Windows
from fleet.adapt.attach import attach
from fleet.adapt.base import Base
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.merge import merge, merge_kernel
from fleet.adapt.network import folded_network, parameters_of
from fleet.adapt.state import CoreState
from fleet.config import RunConfig
from fleet.errors import MismatchError
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.releases import first_release
from fleet.federate.wire import encode_plan
from fleet.peft.registry import find
from server import coordinator as c
from server.app import task_of
from tests.fleet.continual.bases import make_base, state_of, windows_of

KINDS: tuple[FrameKind, ...] = ("random", "svd")
# (kernel, groups) of Conv1d, a grouped one, and Conv2d
SHAPES = [((6, 4, 3), 1), ((8, 2, 3), 2), ((4, 3, 2, 2), 1)]
Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> Base:
    return make_base(request.param)


def factors(shape: tuple[int, ...], seed: int, rank: int = 2) -> Factors:
    random = np.random.default_rng(seed)
    return random.standard_normal((shape[0], rank)), random.standard_normal((rank, *shape[1:]))


def dense(kernel: NDArray[np.float64], frame: Frame, both: Factors) -> NDArray[np.float64]:
    """The formula, group by group."""
    core, change = both
    parts = np.split(core, frame.groups)
    suffixes = frame.suffix(kernel) + change
    delta = [np.tensordot(part, own, axes=1) for part, own in zip(parts, suffixes, strict=True)]
    return kernel + np.concatenate(delta)


def conv_of(kernel: NDArray[np.float64], groups: int) -> nn.Sequential:
    make = nn.Conv1d if kernel.ndim == 3 else nn.Conv2d
    layer = make(kernel.shape[1] * groups, len(kernel), kernel.shape[2:], groups=groups, padding=1)
    layer.weight.data = torch.from_numpy(kernel)
    return nn.Sequential(layer.double())


def entries(both: Factors) -> CoreState:
    return CoreState.of({"0.core": both[0], "0.suffix": both[1]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_a_merge_is_the_dense_formula(shape: tuple[int, ...], groups: int, kind: FrameKind) -> None:
    kernel = np.random.default_rng(0).standard_normal(shape)
    frame, both = make_frame(kernel, kind, 2, groups=groups), factors(shape, 1)
    merged = merge({"0.weight": kernel}, {"0": frame}, entries(both))
    np.testing.assert_allclose(merged["0.weight"], dense(kernel, frame, both), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_outputs_and_gradients_are_those_of_the_dense_formula(
    shape: tuple[int, ...], groups: int, kind: FrameKind
) -> None:
    kernel = np.random.default_rng(0).standard_normal(shape)
    frame, both = make_frame(kernel, kind, 2, groups=groups), factors(shape, 1)
    network = conv_of(kernel, groups)
    attached = attach(network, {"0": frame}, entries(both), dtype=torch.float64)
    x = torch.from_numpy(
        np.random.default_rng(2).standard_normal((3, shape[1] * groups, *[7] * (len(shape) - 2)))
    )
    y = attached.module(x)
    y.square().sum().backward()
    core, change = (torch.from_numpy(each).requires_grad_(True) for each in both)
    suffix = torch.from_numpy(np.array(frame.suffix(kernel))) + change
    moved = torch.einsum("gor,gr...->go...", core.view(groups, -1, 2), suffix)
    layer: Any = network[0]
    wanted = layer._conv_forward(x, layer.weight.detach() + moved.reshape(shape), layer.bias)
    wanted.square().sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(attached.parameters["0.core"].grad, core.grad)
    torch.testing.assert_close(attached.parameters["0.suffix"].grad, change.grad)


def test_no_core_is_the_base_bit_for_bit_wherever_the_suffix_is(base: Base) -> None:
    network = folded_network(base)
    layout, own = find("lora").layout(network, base.frames), parameters_of(network)
    state = state_of(base, "lora", 1.0).arrays
    still = {n: np.zeros_like(a) if n.endswith(".core") else a for n, a in state.items()}
    for each in (CoreState.zero(layout), CoreState.of(still)):
        merged = merge(own, base.frames, each)
        assert all(merged[name].tobytes() == own[name].tobytes() for name in own)


@pytest.mark.parametrize("method", ["lora", "lora+head", "core+full", "lora+full"])
def test_what_a_device_trains_is_what_it_serves(base: Base, method: str) -> None:
    learner = learner_of(base)
    state = state_of(base, method)
    attached = learner.bench.attach(method, state, torch.float64)
    assert attached.state().layout == learner.bench.layout(method)
    for name, array in attached.state().arrays.items():
        np.testing.assert_allclose(array, state.arrays[name], rtol=1e-6, atol=1e-7)
    x = torch.from_numpy(windows_of(4))
    served = learner.bench.served(state)(x)
    torch.testing.assert_close(served.double(), attached.module(x.double()), rtol=1e-4, atol=1e-4)
    plain = attached.detach()
    names = {name for name, _ in plain.named_parameters()}
    assert names == {name for name, _ in learner.bench.network.named_parameters()}


def learner_of(base: Base, device: str = "a", seed: int = 5) -> Learner:
    y = np.arange(12) % 4
    windows = Windows(windows_of(12, seed), y, np.zeros((0, 3, 32), "f4"), y[:0])
    return Learner(device, base, windows)


def test_a_round_averages_each_factor_on_its_own(base: Base) -> None:
    """Learner, wire, admission and aggregation are those of cores."""
    learners = {name: learner_of(base, name, seed) for name, seed in (("a", 5), ("b", 6))}
    layout = learners["a"].bench.layout("lora")
    release = first_release(base, "lora", layout)
    config = RunConfig.parse({"batch": 4, "epochs": 3})
    task = task_of(config, base, find("lora"), 0.002)
    rules = c.Rules(rounds=1, minimum=2, quorum=2)
    state, effects = c.step(c.begin(rules, task, release), c.Fleet(0.0, tuple(learners)))
    push = effects[0]
    assert isinstance(push, c.Push)
    message = encode_plan(push.plan, release.state)
    answers = {name: each.answer_plan(message) for name, each in learners.items()}
    moved = [admit(answers[n], push.plan, layout, n, Bounds()) for n in sorted(answers)]
    assert all(isinstance(each, Admitted) for each in moved)
    state, _ = c.step(state, c.Pushed(1.0))
    _, effects = c.step_all(state, [c.Answered(2.0, n, answers[n]) for n in sorted(answers)])
    published = next(each for each in effects if isinstance(each, c.Publish))
    deltas = [each.train(push.plan, release.state)[0] for each in learners.values()]
    assert published.release is not None
    found = published.release.state
    mean = (deltas[0].flat().astype(float) + deltas[1].flat()) / 2
    np.testing.assert_allclose(found.flat(), mean, rtol=0, atol=1e-6)
    assert all(np.abs(array).max() > 0 for array in found.arrays.values()), "both factors move"


def test_averaging_the_factors_is_not_averaging_kernels_but_averaging_cores_is() -> None:
    shape = (6, 4, 3)
    kernel = np.random.default_rng(0).standard_normal(shape)
    frame = make_frame(kernel, "random", 2)
    devices = [factors(shape, seed) for seed in (1, 2, 3)]
    core, change = (np.mean([each[n] for each in devices], axis=0) for n in (0, 1))

    kernels = np.mean([merge_kernel(kernel, frame, own) for own, _ in devices], axis=0)
    np.testing.assert_allclose(merge_kernel(kernel, frame, core), kernels, atol=1e-12)

    kernels = np.mean([merge_kernel(kernel, frame, *each) for each in devices], axis=0)
    off = np.linalg.norm(merge_kernel(kernel, frame, core, change) - kernels)
    assert off > 0.2 * np.linalg.norm(kernels - kernel)


@pytest.mark.parametrize("shape", [(3, 4, 3), (2, 4, 2), (2, 4)])
def test_a_change_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 4, 3))
    frames = {"0": make_frame(kernel, "random", 2)}
    state = CoreState.of({"0.core": np.ones((6, 2)), "0.suffix": np.ones(shape)})
    with pytest.raises(MismatchError, match="suffix") as merging:
        merge({"0.weight": kernel}, frames, state)
    with pytest.raises(MismatchError, match="suffix") as attaching:
        attach(conv_of(kernel, 1), frames, state, dtype=torch.float64)
    assert {merging.value.code, attaching.value.code} == {"suffix-shape"}


def test_a_change_without_its_core_fits_nothing(base: Base) -> None:
    alone = {n: a for n, a in state_of(base, "lora").arrays.items() if n != "conv1.core"}
    network = folded_network(base)
    for use in (
        lambda s: merge(parameters_of(network), base.frames, s),
        lambda s: attach(network, base.frames, s, dtype=torch.float32),
    ):
        with pytest.raises(MismatchError) as caught:
            use(CoreState.of(alone))
        assert caught.value.code == "unknown-entry"

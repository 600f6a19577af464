from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import attach
from fleet.adapt.cohort.evaluate import evaluate_cohort
from fleet.adapt.cohort.network import attach_cohort
from fleet.adapt.cohort.stacks import Stacks
from fleet.adapt.cohort.train import train_cohort
from fleet.adapt.cohort.work import DeviceWork, step_batch
from fleet.adapt.core_layer import CoreLayer
from fleet.adapt.fold import ChannelAffine
from fleet.adapt.frames import FrameKind, make_frame
from fleet.adapt.state import CoreState
from fleet.adapt.train import predict
from fleet.errors import MismatchError, ModelError
from tests.fleet.adapt.cohort.fleets import SIZES, Bench, bench, flat, fleet, network_of, work
from tests.fleet.adapt.lean.networks import CHANNELS, CLASSES, WINDOW, windows


class Tokens(nn.Module):
    """Linear layers over every position, the second of which is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(CHANNELS, 6)
        self.head = nn.Linear(6, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inside(x.transpose(1, 2)).relu()).mean(dim=1)


class Affine(nn.Module):
    """An affine map that no convolution took in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = ChannelAffine(torch.ones(CHANNELS), torch.zeros(CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).mean(dim=2)


class Gate(Tokens):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sigmoid())


@pytest.mark.parametrize("trained", ["inside.core", "inside.weight", "inside.bias", "head.weight"])
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_linear_layers_over_positions_train_by_device(kind: FrameKind, trained: str) -> None:
    torch.manual_seed(0)
    network = Tokens().double().requires_grad_(False)
    frames = {"inside": make_frame(network.inside.weight.numpy(), kind, 2)}
    own = dict(network.named_parameters())
    random = np.random.default_rng(0)
    shapes = {"inside.core": (6, 2), **{n: tuple(p.shape) for n, p in own.items()}}
    state = CoreState.of(
        {name: 0.1 * random.standard_normal(shapes[name]) for name in {"inside.core", trained}}
    )
    cohort = attach_cohort(network, frames, state, 3, dtype=torch.float64)
    x = torch.stack([windows(4, seed=seed) for seed in range(3)])
    y = torch.arange(12).view(3, 4) % CLASSES
    for stack in cohort.parameters.values():
        stack.add_(0.1 * torch.from_numpy(random.standard_normal(stack.shape)))
    losses, gradients = cohort.gradients(x, y, torch.full((3, 4), 0.25, dtype=torch.float64))
    for device, there in enumerate(cohort.states()):
        alone = attach(network, frames, there, dtype=torch.float64)
        loss = functional.cross_entropy(alone.module(x[device]), y[device])
        loss.backward()
        torch.testing.assert_close(losses[device], loss.detach())
        for name, parameter in alone.parameters.items():
            torch.testing.assert_close(gradients[name][device], parameter.grad)


@pytest.mark.parametrize(
    ("network", "entry", "code"),
    [
        (network_of("small-cnn"), "conv2.weight", "cohort-dense-kernels"),
        (Affine(), "norm.scale", "cohort-dense-kernels"),
        (Affine(), "norm.shift", "cohort-dense-kernels"),
        (Gate(), "head.weight", "cohort-no-tape"),
    ],
)
def test_what_cannot_be_trained_in_a_batch_is_an_error(
    network: nn.Module, entry: str, code: str
) -> None:
    start = CoreState.of({entry: np.zeros(tuple(network.get_parameter(entry).shape))})
    with pytest.raises(ModelError) as caught:
        attach_cohort(network, {}, start, 2, dtype=torch.float64)
    assert caught.value.code == code
    assert caught.value.hint == "Train these devices one by one."


def test_an_entry_that_fits_no_layer_is_the_error_of_attaching() -> None:
    start = CoreState.of({"nowhere.core": np.zeros((3, 2))})
    with pytest.raises(MismatchError, match="fits no layer"):
        attach_cohort(network_of("small-cnn"), {}, start, 2, dtype=torch.float64)


def test_every_device_starts_at_the_state_and_again_after_a_restart() -> None:
    tried = bench("small-cnn")
    cohort = tried.cohort()
    for devices in (len(SIZES), 5):
        assert [state.digest for state in cohort.states()] == [cohort.start.digest] * devices
        np.testing.assert_allclose(cohort.start.flat(), tried.state.flat(), rtol=0, atol=1e-15)
        for stack in cohort.parameters.values():
            stack[1] += 1.0
        assert len({state.digest for state in cohort.states()}) == 2
        cohort.restart(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beginning_elsewhere_is_the_same_as_being_attached_there(dtype: torch.dtype) -> None:
    tried = bench("small-cnn", "core+head")
    there = tried.state + tried.state
    network = tried.cohort(dtype)
    network.begin(there)
    fresh = Bench(tried.network, tried.frames, there).cohort(dtype)
    assert network.start.digest == fresh.start.digest
    network.restart(len(SIZES))
    assert [s.digest for s in network.states()] == [s.digest for s in fresh.states()]
    works = fleet()
    how: Any = {"optimiser": "sgd", "learning_rate": 0.1}
    for one, other in zip(
        train_cohort(network, works, **how), train_cohort(fresh, works, **how), strict=True
    ):
        assert flat(one).tobytes() == flat(other).tobytes()


def test_a_state_of_other_entries_is_no_beginning() -> None:
    other = bench("small-cnn", "head").state
    with pytest.raises(MismatchError, match="not those that this network trains"):
        bench("small-cnn", "core").cohort().begin(other)


def test_a_window_without_weight_changes_nothing_and_is_not_modified() -> None:
    cohort = bench("small-cnn").cohort()
    x = torch.stack([windows(3, seed=seed) for seed in (1, 2)])
    y = torch.tensor([[0, 1, 2], [3, 2, 1]])
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    before, (losses, gradients) = x.clone(), cohort.gradients(x, y, weights)
    other = torch.where(weights[..., None, None] > 0, x, x + 1.0)
    again, same = cohort.gradients(other, y, weights)
    assert torch.equal(x, before)
    assert torch.equal(losses, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, same[name], rtol=1e-12, atol=1e-15)
        assert not gradient[2].any()


def test_a_step_is_filled_up_with_its_own_last_window() -> None:
    works = [work(5, "a", batch=4, epochs=1), work(9, "b", batch=4, epochs=1)]
    batch = step_batch(works, 1, dtype=torch.float64, place=torch.device("cpu"))
    assert (batch.x.shape, batch.x.dtype) == ((2, 4, CHANNELS, WINDOW), torch.float64)
    assert batch.weights.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.25] * 4]
    (last,) = works[0].order[1]
    assert all(torch.equal(row, works[0].x[last].double()) for row in batch.x[0])
    assert batch.y[0].tolist() == [int(works[0].y[last])] * 4
    assert batch.y[1].tolist() == works[1].y[works[1].order[1]].tolist()


def test_rows_name_a_devices_windows_in_shared_data() -> None:
    x = windows(6, torch.float32)
    rows = np.array([4, 1], np.int64)
    shared = DeviceWork(x, torch.arange(6), [np.array([1, 0])], rows)
    batch = step_batch([shared], 0, dtype=torch.float32, place=torch.device("cpu"))
    assert batch.y.tolist() == [[1, 4]]
    assert torch.equal(batch.x[0], x[[1, 4]])
    assert shared.visits == 2


def test_stacks_hand_out_the_running_devices_alone() -> None:
    stacks = Stacks({"a": torch.arange(2.0)}, 3)
    assert (stacks.running, stacks.alone, stacks.of("a").shape) == (3, False, (3, 2))
    with pytest.raises(ValueError, match="3 devices run"):
        stacks.only("a")
    stacks.run(1, 2)
    stacks.only("a").add_(1.0)
    assert stacks.values["a"].tolist() == [[0.0, 1.0], [1.0, 2.0], [0.0, 1.0]]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_an_evaluation_together_is_each_devices_own(batch: int) -> None:
    network = network_of("small-cnn")
    parts = [one.x for one in fleet()]
    parts.insert(1, parts[0][:0])
    got = evaluate_cohort(network, parts, batch=batch)
    assert [len(found) for found in got] == [5, 0, 12, 17]
    for found, x in zip(got, parts, strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, predict(network, x))
    assert evaluate_cohort(network, []) == []


def test_the_network_that_is_copied_stays_as_it_was() -> None:
    tried = bench("small-cnn")
    before = {n: p.clone() for n, p in tried.network.named_parameters()}
    cohort = tried.cohort()
    for stack in cohort.parameters.values():
        stack.add_(1.0)
    assert not any(isinstance(m, CoreLayer) for m in tried.network.modules())
    for name, parameter in tried.network.named_parameters():
        assert torch.equal(parameter, before[name])

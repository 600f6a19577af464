from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.state import CoreState
from fleet.errors import ModelError
from fleet.measure.macs import count_macs, step_macs
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.fleet.adapt.lean.networks import (
    NETWORKS,
    InvertedResidual,
    folded,
    frames_of,
    state_of,
    windows,
)

CLASSES = 6
# Layer, input without batch, and by hand: output channels x inputs per group x kernel x positions.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "dense": (lambda: nn.Conv1d(6, 8, 5, padding=2), (6, 20), 8 * 6 * 5 * 20),
    "grouped": (lambda: nn.Conv1d(6, 8, 5, padding=2, groups=2), (6, 20), 8 * 3 * 5 * 20),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, padding=1, groups=6), (6, 20), 6 * 1 * 3 * 20),
    "depthwise, two each": (lambda: nn.Conv1d(6, 12, 3, groups=6), (6, 20), 12 * 1 * 3 * 18),
    "strided": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), (6, 20), 8 * 6 * 5 * 10),
    "dilated": (lambda: nn.Conv1d(6, 8, 3, dilation=4), (6, 20), 8 * 6 * 3 * 12),
    "padded to the same": (lambda: nn.Conv1d(6, 8, 3, padding="same"), (6, 20), 8 * 6 * 3 * 20),
    "circular": (
        lambda: nn.Conv1d(6, 8, 3, padding=1, padding_mode="circular"),
        (6, 20),
        8 * 6 * 3 * 20,
    ),
    "two-dimensional": (lambda: nn.Conv2d(3, 4, (5, 1)), (3, 20, 2), 4 * 3 * (5 * 1) * (16 * 2)),
    "separable": (
        lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False),
        (4, 8, 6),
        4 * 1 * (3 * 3) * (4 * 3),
    ),
    # A transposed convolution uses its kernel once per input position.
    "transposed": (
        lambda: nn.ConvTranspose1d(6, 8, 4, stride=2, groups=2),
        (6, 10),
        6 * 4 * 4 * 10,
    ),
    "linear": (lambda: nn.Linear(7, 5), (7,), 7 * 5),
    "linear over time": (lambda: nn.Linear(7, 5, bias=False), (3, 7), 3 * 7 * 5),
}
BATCH = 3


def given(name: str) -> tuple[nn.Module, torch.Tensor, int]:
    make, shape, each = LAYERS[name]
    return make(), torch.ones(BATCH, *shape), BATCH * each


def backward(output: torch.Tensor, *wanted: torch.Tensor) -> int:
    gradient = torch.ones_like(output)
    return count_macs(lambda: torch.autograd.grad(output, wanted, gradient))


def mode_runs(inference: bool) -> Callable[[Callable[[], object]], int]:
    def count(work: Callable[[], object]) -> int:
        with torch.inference_mode(inference):
            return count_macs(work)

    return count


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_pass_uses_the_kernel_once_per_window_and_position(
    name: str, inference: bool
) -> None:
    layer, x, expected = given(name)
    assert mode_runs(inference)(lambda: layer(x)) == expected


@pytest.mark.parametrize("name", LAYERS)
def test_each_gradient_costs_what_the_forward_pass_costs(name: str) -> None:
    layer, x, expected = given(name)
    weight = layer.get_parameter("weight")
    x.requires_grad_(True)
    assert backward(layer(x), weight) == expected
    assert backward(layer(x), x) == expected
    assert backward(layer(x), x, weight) == 2 * expected


@pytest.mark.parametrize("name", ["dense", "depthwise", "linear"])
def test_the_gradient_of_a_bias_alone_is_free(name: str) -> None:
    layer, x, _ = given(name)
    assert backward(layer(x), layer.get_parameter("bias")) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_a_first_layer_pays_for_no_input_gradient(name: str) -> None:
    layer, x, expected = given(name)
    assert count_macs(lambda: layer(x).sum().backward()) == 2 * expected


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_weight_gradient_of_a_grouped_convolution_is_not_charged_once_per_group(
    groups: int,
) -> None:
    """Counters that forget the groups find ``groups`` times as much; the groups apart tell."""
    layer, part = nn.Conv1d(8, 8, 3, groups=groups), nn.Conv1d(8 // groups, 8 // groups, 3)
    x = torch.ones(2, 8, 10)
    own = backward(layer(x), layer.weight)
    with FlopCounterMode(display=False) as alone:
        torch.autograd.grad(part(x[:, : 8 // groups]).sum(), part.weight)
    forward_and_weight = alone.get_total_flops() // 2
    assert own == count_macs(lambda: layer(x)) == groups * forward_and_weight // 2


PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "mm": (lambda: torch.mm(torch.ones(2, 3), torch.ones(3, 5)), 2 * 3 * 5),
    "mm into a given tensor": (
        lambda: torch.mm(torch.ones(2, 3), torch.ones(3, 5), out=torch.empty(2, 5)),
        2 * 3 * 5,
    ),
    "bmm": (lambda: torch.bmm(torch.ones(4, 2, 3), torch.ones(4, 3, 5)), 4 * 2 * 3 * 5),
    "addmm": (lambda: torch.addmm(torch.ones(5), torch.ones(2, 3), torch.ones(3, 5)), 2 * 3 * 5),
    "addmm in place": (
        lambda: torch.ones(2, 5).addmm_(torch.ones(2, 3), torch.ones(3, 5)),
        2 * 3 * 5,
    ),
    "baddbmm": (
        lambda: torch.baddbmm(torch.ones(2, 5), torch.ones(4, 2, 3), torch.ones(4, 3, 5)),
        4 * 2 * 3 * 5,
    ),
    "baddbmm in place": (
        lambda: torch.ones(4, 2, 5).baddbmm_(torch.ones(4, 2, 3), torch.ones(4, 3, 5)),
        4 * 2 * 3 * 5,
    ),
    "addbmm": (
        lambda: torch.addbmm(torch.ones(2, 5), torch.ones(4, 2, 3), torch.ones(4, 3, 5)),
        4 * 2 * 3 * 5,
    ),
    "mv": (lambda: torch.mv(torch.ones(2, 3), torch.ones(3)), 2 * 3),
    "addmv": (lambda: torch.addmv(torch.ones(2), torch.ones(2, 3), torch.ones(3)), 2 * 3),
    "dot": (lambda: torch.dot(torch.ones(3), torch.ones(3)), 3),
    "matmul, broadcast": (lambda: torch.ones(4, 2, 3) @ torch.ones(3, 5), 4 * 2 * 3 * 5),
    "einsum": (
        lambda: torch.einsum("gor,grp->gop", torch.ones(2, 5, 3), torch.ones(2, 3, 7)),
        2 * 5 * 3 * 7,
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_matrix_product_costs_its_three_dimensions(name: str, inference: bool) -> None:
    work, expected = PRODUCTS[name]
    assert mode_runs(inference)(work) == expected


def test_what_works_entry_by_entry_is_not_counted() -> None:
    x = torch.ones(2, 4, 8, requires_grad=True)
    layers = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.MaxPool1d(2))
    assert count_macs(lambda: (layers(x).mean() * 3).backward()) == 0


def test_an_operator_of_unknown_cost_is_refused() -> None:
    x = torch.ones(1, 2, 4, 8)
    with pytest.raises(ModelError, match="scaled_dot_product") as refused:
        count_macs(lambda: nn.functional.scaled_dot_product_attention(x, x, x))
    assert refused.value.code == "uncounted-operator"


def small_cnn(name: str = "small-cnn") -> nn.Module:
    return build(ModelConfig(name=name, channels=6, classes=CLASSES, window=128), seed=0)


# One window of 6 x 128 through small-cnn: two poolings halve the time.
CONV1 = 64 * 6 * 5 * 128
CONV2 = 128 * 64 * 5 * 64
CONV3 = 128 * 128 * 5 * 32
HEAD = 128 * CLASSES
FORWARD = CONV1 + CONV2 + CONV3 + HEAD
ONE, LABEL = torch.ones(1, 6, 128), torch.tensor([2])


def test_a_full_step_of_small_cnn_is_as_by_hand() -> None:
    found = step_macs(small_cnn().train(), ONE, LABEL)
    assert found.by_operator == {
        "convolution": CONV1 + CONV2 + CONV3,
        "addmm": HEAD,
        "mm": 2 * HEAD,
        "convolution_backward.input": CONV2 + CONV3,
        "convolution_backward.weight": CONV1 + CONV2 + CONV3,
    }
    assert found.total == 3 * FORWARD - CONV1 == sum(found.by_operator.values())


def test_a_step_that_trains_the_head_alone_goes_no_further_down() -> None:
    network = small_cnn().requires_grad_(False)
    network.get_submodule("head").requires_grad_(True)
    assert step_macs(network.eval(), ONE, LABEL).total == FORWARD + HEAD


def test_a_network_that_trains_nothing_costs_its_forward_pass() -> None:
    assert step_macs(small_cnn().requires_grad_(False), ONE, LABEL).total == FORWARD


def lean_step(kind: FrameKind, *layers: str) -> int:
    network = folded(small_cnn)
    frames = frames_of(network, kind, 2)
    arrays = state_of(network, frames).arrays
    state = CoreState.of({name: arrays[name] for name in arrays if name.split(".")[0] in layers})
    lean = attach_lean(network, frames, state, dtype=torch.float32)
    return step_macs(lean.module, ONE, LABEL).total


# Rank x outputs x positions: what one of a core's thin products costs in each layer.
THIN1, THIN2, THIN3 = 2 * 64 * 128, 2 * 128 * 64, 2 * 128 * 32
# The convolution adds the bias, and M·b takes it out of z again: once per layer and pass.
BIAS1, BIAS2, BIAS3 = 2 * 64, 2 * 128, 2 * 128


def test_a_lean_step_of_cores_is_as_by_hand() -> None:
    # M·u and C·z.
    forward = FORWARD + 2 * (THIN1 + THIN2 + THIN3)
    # dC everywhere; Cᵀ·gy, Mᵀ·gz and dx in all but the lowest layer; the head's dx.
    backward = (THIN1 + THIN2 + THIN3) + 2 * (THIN2 + THIN3) + (CONV2 + CONV3) + HEAD
    offsets = BIAS1 + BIAS2 + BIAS3
    assert lean_step("svd", "conv1", "conv2", "conv3") == forward + backward + offsets


def test_a_lean_step_stops_at_the_lowest_core() -> None:
    forward = FORWARD + 2 * (THIN2 + THIN3)
    backward = (THIN2 + THIN3) + 2 * THIN3 + CONV3 + HEAD
    assert lean_step("svd", "conv2", "conv3") == forward + backward + BIAS2 + BIAS3


def test_a_lean_step_in_the_tt_frame_counts_the_convolution_beside() -> None:
    # z = conv(x, S) has two output channels.
    beside1, beside2, beside3 = 2 * 6 * 5 * 128, 2 * 64 * 5 * 64, 2 * 128 * 5 * 32
    forward = FORWARD + (THIN1 + THIN2 + THIN3) + (beside1 + beside2 + beside3)
    # dC everywhere; Cᵀ·gy, dx and convᵀ(gz, S) in all but the lowest layer; the head's dx.
    backward = (THIN1 + THIN2 + THIN3) + (THIN2 + THIN3) + (CONV2 + CONV3) + HEAD
    backward += beside2 + beside3
    assert lean_step("tt", "conv1", "conv2", "conv3") == forward + backward


def test_a_lean_step_respects_groups() -> None:
    network = nn.Sequential(nn.Conv1d(6, 8, 3), nn.Conv1d(8, 12, 3, groups=4), nn.Flatten())
    network.append(nn.Linear(12 * 6, CLASSES)).requires_grad_(False)
    frames = frames_of(network, "svd", 1)
    lean = attach_lean(network, frames, state_of(network, frames), dtype=torch.float32)
    first, second, head = 8 * 6 * 3 * 8, 12 * 2 * 3 * 6, 12 * 6 * CLASSES
    thin1, thin2 = 1 * 8 * 8, 1 * 12 * 6
    forward = first + 2 * thin1 + second + 2 * thin2 + head
    backward = thin1 + thin2 + second + head
    # 30 positions outnumber the 24 columns of the second kernel: its core joins the kernel for the
    # way back, M·K and C·S once for the whole batch. M·b comes once as well.
    merged, offsets = 2 * (12 * 2 * 3), 8 + 12
    x, y = torch.ones(5, 6, 10), torch.zeros(5, dtype=torch.int64)
    assert step_macs(lean.module, x, y).total == 5 * (forward + backward) + merged + offsets


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "two-dimensional"])
def test_half_the_flops_of_pytorchs_counter_where_nothing_is_grouped(name: str) -> None:
    network, x, y = (
        NETWORKS[name](),
        windows(dtype=torch.float32),
        torch.zeros(5, dtype=torch.int64),
    )
    with FlopCounterMode(display=False) as oracle:
        nn.functional.cross_entropy(network(x), y).backward()
    assert 2 * step_macs(network, x, y).total == oracle.get_total_flops()


def test_counting_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv1d(6, 8, 5), nn.BatchNorm1d(8), nn.Dropout(), nn.Flatten())
    network.append(nn.Linear(8 * 124, CLASSES))
    network[1].eval()
    network[0].weight.grad = torch.full_like(network[0].weight, 0.5)
    state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    modes = [module.training for module in network.modules()]
    with torch.no_grad():
        before = step_macs(network, ONE.expand(4, -1, -1), LABEL.expand(4)).total
    assert before == step_macs(network, ONE.expand(4, -1, -1), LABEL.expand(4)).total
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.all(network[0].weight.grad == 0.5)
    assert all(p.grad is None for p in network.parameters() if p is not network[0].weight)


def test_batch_norms_statistics_in_training_mode_are_put_back() -> None:
    network = small_cnn().train()
    state = copy.deepcopy(network.state_dict())
    step_macs(network, torch.randn(3, 6, 128), torch.arange(3))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_separable_blocks_cost_three_forward_passes_but_one_input_gradient() -> None:
    block = InvertedResidual(4, 4, 1)
    network = nn.Sequential(block, nn.Flatten(), nn.Linear(4 * 10, CLASSES))
    x, y = torch.ones(2, 4, 10), torch.zeros(2, dtype=torch.int64)
    first = 2 * 12 * 4 * 10
    forward = 2 * first + 2 * 12 * 3 * 10 + 2 * 40 * CLASSES
    assert step_macs(network, x, y).total == 3 * forward - first

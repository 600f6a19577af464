from __future__ import annotations

import torch
from torch import nn

from fleet.adapt.lean.module import LeanNetwork, attach_lean
from fleet.adapt.state import CoreState
from fleet.measure.saved import saved_bytes

BATCH, IN, HIDDEN, CLASSES = 5, 3, 7, 4
X = torch.randn(BATCH, IN, generator=torch.Generator().manual_seed(0))
Y = torch.arange(BATCH) % CLASSES
# The loss keeps the logits' logarithms, the labels, and one number: the sum of the weights.
LOSS = 4 * BATCH * CLASSES + 8 * BATCH + 4


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def test_a_linear_layer_keeps_its_input_and_the_loss_its_own() -> None:
    assert saved_bytes(nn.Linear(IN, CLASSES), X, Y) == 4 * BATCH * IN + LOSS


def test_two_layers_keep_the_input_and_the_activation_between_them_once() -> None:
    # The ReLU's output is kept by the ReLU and by the second layer, in one memory.
    assert saved_bytes(two_layers(), X, Y) == 4 * BATCH * (IN + HIDDEN) + LOSS


def test_what_is_frozen_keeps_nothing_below_what_is_trained() -> None:
    network = two_layers()
    network[0].requires_grad_(False)
    assert saved_bytes(network, X, Y) == 4 * BATCH * HIDDEN + LOSS


def test_a_network_that_trains_nothing_keeps_nothing() -> None:
    assert saved_bytes(two_layers().requires_grad_(False), X, Y) == 0


def test_parameters_and_buffers_are_not_counted() -> None:
    network = nn.Sequential(nn.Linear(IN, CLASSES), nn.BatchNorm1d(CLASSES).eval())
    # Batch norm in evaluation mode keeps its input beside its own parameters and statistics.
    assert saved_bytes(network, X, Y) == 4 * BATCH * (IN + CLASSES) + LOSS


def lean(network: nn.Module) -> LeanNetwork:
    head = {"2.weight": torch.zeros(CLASSES, HIDDEN).numpy()}
    return attach_lean(network, {}, CoreState.of(head), dtype=torch.float32).lean


def test_a_lean_network_reports_what_it_keeps_and_the_loss_counts_as_everywhere() -> None:
    plain = two_layers().requires_grad_(False)
    assert saved_bytes(lean(plain), X, Y) == 4 * BATCH * HIDDEN + LOSS


class Branching(nn.Sequential):
    """A network that cannot be followed symbolically."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if float(x.sum()) > 0 else -x)


def test_a_lean_network_that_falls_back_is_counted_as_what_it_is() -> None:
    network = lean(Branching(*two_layers()).requires_grad_(False))
    assert not network.explain()[0].lean
    assert saved_bytes(network, X, Y) == 4 * BATCH * HIDDEN + LOSS

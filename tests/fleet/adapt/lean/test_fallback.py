from __future__ import annotations

import pytest
import torch
from torch import nn

from fleet.adapt.attach import attach
from fleet.adapt.lean.module import attach_lean
from tests.fleet.adapt.lean.comparing import assert_same
from tests.fleet.adapt.lean.networks import Concatenating, folded, frames_of, state_of, windows


class Gated(Concatenating):
    """Something that no tape knows: a sigmoid gate, a norm over features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(28)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a)) * torch.sigmoid(a)
        c = torch.relu(self.third(self.halve(torch.cat([a, b], dim=1))))
        return self.head(self.norm(torch.cat([v.mean(dim=-1) for v in (a, b, c)], dim=1)))


class Split(Concatenating):
    """What cannot even be run node by node: a layer with several outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).relu().chunk(2, dim=1)
        c = torch.relu(self.third(self.halve(torch.cat([a, b, b, a], dim=1))))
        return self.head(torch.cat([v.mean(dim=-1) for v in (a, b, a, b, c)], dim=1))


@pytest.mark.parametrize("dense", [(), ("norm.weight", "head.weight", "first.bias")])
def test_an_unknown_node_falls_back_alone_and_says_so(dense: tuple[str, ...]) -> None:
    network = folded(Gated)
    frames = frames_of(network)
    state = state_of(network, frames, *dense)
    plain = attach(network, frames, state, dtype=torch.float64)
    lean = attach_lean(network, frames, state, dtype=torch.float64, slice_windows=2)
    assert_same(lean, plain, windows(), 1e-9)
    notes = {note.name: note for note in lean.lean.explain()}
    assert {name for name, note in notes.items() if not note.lean} == {"sigmoid", "mul", "norm"}
    assert str(notes["norm"]) == (
        "norm: plain autograd (no lean form of LayerNorm), keeps what plain autograd saves"
    )
    lean.module(windows())
    assert lean.lean.saved_bytes > 0


def test_an_unfollowable_network_falls_back_as_a_whole_and_says_so() -> None:
    network = folded(Split)
    frames = {n: f for n, f in frames_of(network).items() if n != "second"}
    state = state_of(network, frames)
    plain = attach(network, frames, state, dtype=torch.float64)
    lean = attach_lean(network, frames, state, dtype=torch.float64)
    assert_same(lean, plain, windows(), 1e-12)
    (note,) = lean.lean.explain()
    assert not note.lean
    assert "several tensors" in note.reason

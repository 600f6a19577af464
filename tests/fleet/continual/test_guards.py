from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fleet.adapt.attach import Attached
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.adapt.train import train
from fleet.continual.guards import Anchor, Distil, fisher_information, joined_fisher
from fleet.errors import InputError
from fleet.peft.registry import find
from tests.fleet.continual.bases import make_base, state_of, windows_of

METHOD = "core+head"
X = torch.from_numpy(windows_of(12)).double()
Y = torch.arange(12) % 4
ROWS = np.arange(12)


def attached_at(base: Base, state: CoreState) -> Attached:
    return find(METHOD).attach(folded_network(base), base.frames, state, dtype=torch.float64)


def backward(attached: Attached) -> None:
    functional.cross_entropy(attached.module(X), Y).backward()


def gradients(attached: Attached) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in attached.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("weighted", [False, True])
def test_an_anchor_adds_the_gradient_of_its_penalty(weighted: bool) -> None:
    base = make_base()
    anchor, weights = state_of(base, seed=2), state_of(base, seed=3, size=1.0)
    positive = CoreState.from_flat(weights.layout, np.abs(weights.flat()))
    attached = attached_at(base, state_of(base))
    backward(attached)
    before = gradients(attached)
    guard = Anchor(anchor, 0.7, positive if weighted else None)
    guard.add_gradient(attached, X, ROWS)
    own = attached.state()
    for name, now in gradients(attached).items():
        weight = positive.arrays[name] if weighted else 1.0
        wanted = 0.7 * weight * (own.arrays[name] - anchor.arrays[name].astype(np.float64))
        np.testing.assert_allclose((now - before[name]).numpy(), wanted, atol=1e-9)


def test_a_teacher_that_is_asked_when_it_is_needed_teaches_what_its_logits_do() -> None:
    base, found = make_base(), []
    network, rows = folded_network(base).double().requires_grad_(True), ROWS[::-1][:8].copy()
    with torch.no_grad():
        logits = network(X)
    for teacher in (logits, network):
        attached = attached_at(base, state_of(base))
        backward(attached)
        Distil(teacher, 2.0).add_gradient(attached, X[rows], rows)
        found.append(gradients(attached))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-12, rtol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_distillation_from_itself_pulls_nowhere() -> None:
    attached = attached_at(make_base(), state_of(make_base()))
    logits = attached.module(X).detach()
    backward(attached)
    before = gradients(attached)
    Distil(logits, 5.0).add_gradient(attached, X, ROWS)
    for name, now in gradients(attached).items():
        torch.testing.assert_close(now, before[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize("together", [1, 5, 12, 100])
def test_distillation_in_parts_is_distillation_of_the_whole_step(together: int) -> None:
    base = make_base()
    teacher = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()
    found, most = [], list[int]()
    for size in (None, together):
        attached = attached_at(base, state_of(base))
        hook = attached.module.register_forward_pre_hook(lambda _, x: most.append(len(x[0])))
        backward(attached)
        most.clear()
        Distil(teacher, 2.0, together=size).add_gradient(attached, X, ROWS)
        hook.remove()
        found.append(gradients(attached))
    assert (max(most), sum(most)) == (min(together, 12), 12)
    for name, wanted in found[0].items():
        atol = 0.0 if together >= 12 else 1e-12
        torch.testing.assert_close(found[1][name], wanted, atol=atol, rtol=0)


def test_distillation_looks_at_the_rows_of_the_step() -> None:
    base = make_base()
    attached = attached_at(base, state_of(base))
    teacher = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    rows = np.array([3, 17, 5, 0, 1, 2, 9, 8, 7, 6, 19, 11])
    backward(attached)
    before = gradients(attached)
    Distil(teacher, 2.0, temperature=3.0).add_gradient(attached, X, rows)
    after = gradients(attached)
    for parameter in attached.parameters.values():
        parameter.grad = None
    wanted = functional.softmax(teacher[torch.from_numpy(rows)] / 3.0, dim=1)
    said = functional.log_softmax(attached.module(X) / 3.0, dim=1)
    (18.0 * (wanted * (wanted.log() - said)).sum(dim=1).mean()).backward()
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(after[name] - before[name], parameter.grad)


def test_a_strong_anchor_keeps_training_where_it_started() -> None:
    base, start = make_base(), state_of(make_base())
    moved = []
    for guards in ([], [Anchor(start, 8.0)]):
        attached = attached_at(base, start)
        order = [ROWS] * 10
        train(attached, X, Y, order, optimiser="sgd", learning_rate=0.05, guards=guards)
        moved.append((attached.state() - start.astype(np.float64)).norm)
    assert moved[1] < 0.5 * moved[0]


def test_fisher_information_is_the_mean_square_gradient_of_each_window() -> None:
    base = make_base()
    attached = attached_at(base, state_of(base))
    found = fisher_information(attached, X, Y, windows=12)
    total = {name: np.zeros(p.shape) for name, p in attached.parameters.items()}
    for row in range(12):
        for parameter in attached.parameters.values():
            parameter.grad = None
        functional.cross_entropy(attached.module(X[row : row + 1]), Y[row : row + 1]).backward()
        for name, parameter in attached.parameters.items():
            assert parameter.grad is not None
            total[name] += parameter.grad.numpy() ** 2
    largest = max(each.max() for each in total.values())
    for name, array in found.arrays.items():
        np.testing.assert_allclose(array, total[name] / largest, rtol=1e-5, atol=1e-9)
    lean = find("core").attach(
        folded_network(base), base.frames, state_of(base, "core"), dtype=torch.float64
    )
    sizes = list[int]()
    lean.module.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    alone = fisher_information(lean, X, Y, windows=6, together=False)
    assert sizes == [1] * 6
    whole = fisher_information(lean, X, Y, windows=6)
    np.testing.assert_allclose(alone.flat(), whole.flat(), rtol=1e-5, atol=1e-9)


def test_a_running_fisher_information_forgets_slowly_and_starts_anew_with_a_layout() -> None:
    base = make_base()
    one, two = state_of(base, seed=2), state_of(base, seed=3)
    assert joined_fisher(None, one, 0.5).digest == one.digest
    np.testing.assert_allclose(
        joined_fisher(one, two, 0.5).flat(), 0.5 * one.flat() + two.flat(), rtol=1e-6
    )
    other = state_of(base, "core")
    assert joined_fisher(one, other, 0.5).digest == other.digest


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_a_strength_below_zero_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match="0 or more"):
        Anchor(state_of(make_base()), strength)
    with pytest.raises(InputError, match="0 or more"):
        Distil(torch.zeros(1, 4), strength)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from torch.nn import functional

from fleet.adapt.attach import Attached
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.adapt.stepper import Stepper
from fleet.adapt.train import Progress, TrainingResult, batches, train
from fleet.errors import MismatchError
from fleet.peft.registry import METHODS
from fleet.seeds import generator

Snapshot = Callable[[], Progress]
Run = Callable[..., TrainingResult]
WINDOWS, BATCH, EPOCHS, STEPS = 22, 8, 2, 6
RATES = {"sgd": 0.05, "adam": 0.01}


def fresh(base: Base, method: str = "core", seed: int = 1) -> Attached:
    network = folded_network(base)
    layout = METHODS[method].layout(network, base.frames)
    start = np.random.default_rng(seed).normal(0, 0.01, layout.size).astype(np.float32)
    state = CoreState.from_flat(layout, start)
    return METHODS[method].attach(network, base.frames, state, dtype=torch.float32)


def order(seed: int = 7) -> Any:
    rng = generator(seed, 1, "a", "batches")
    return batches(WINDOWS, batch=BATCH, epochs=EPOCHS, generator=rng)


def work(optimiser: str = "sgd", micro_batch: int | None = None) -> Run:
    """Return a training of one problem, to be given what is attached."""
    source = np.random.default_rng(3)
    y = np.arange(WINDOWS) % 4
    x = source.standard_normal((WINDOWS, 3, 16)) + np.sin(np.arange(16) * (1 + y[:, None, None]))
    how: Any = {"optimiser": optimiser, "learning_rate": RATES[optimiser]}
    tensors = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

    def run(attached: Attached, **more: Any) -> TrainingResult:
        own = {"order": order(), "micro_batch": micro_batch, **how, **more}
        return train(attached, *tensors, own.pop("order"), **own)

    return run


def stored(progress: Progress) -> Progress:
    """Take it to a file and back."""
    return replace(progress, arrays=load(save(dict(progress.arrays))))


def bits(attached: Attached) -> tuple[str, dict[str, bytes]]:
    values = {n: p.detach().numpy().tobytes() for n, p in attached.module.named_parameters()}
    return attached.state().digest, values


def watched(run: Run, attached: Attached) -> tuple[TrainingResult, list[Progress]]:
    seen: list[Progress] = []
    result = run(attached, after_step=lambda _, snapshot: seen.append(snapshot()))
    return result, seen


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_training_cut_after_any_step_ends_with_the_bits_of_a_whole_one(
    base: Base, optimiser: str, micro_batch: int | None
) -> None:
    run, whole = work(optimiser, micro_batch), fresh(base)
    wanted = run(whole)
    _, seen = watched(run, fresh(base))
    assert [progress.steps for progress in seen] == list(range(1, STEPS + 1))
    for progress in seen:
        again = fresh(base, seed=2)  # where it starts is in the progress
        assert run(again, resume=stored(progress)) == wanted
        assert bits(again) == bits(whole)


@pytest.fixture(scope="module")
def start(base: Base) -> Callable[[], Attached]:
    """The same as ``fresh``; hypothesis would print a whole base."""
    return lambda: fresh(base)


@settings(max_examples=15)
@given(
    cuts=st.lists(st.integers(1, STEPS), min_size=1, max_size=4, unique=True).map(sorted),
    optimiser=st.sampled_from(["sgd", "adam"]),
    micro_batch=st.sampled_from([None, 1, 5]),
)
def test_a_training_may_be_cut_many_times(
    start: Callable[[], Attached], cuts: list[int], optimiser: str, micro_batch: int | None
) -> None:
    run, whole = work(optimiser, micro_batch), start()
    wanted = run(whole)
    progress: Progress | None = None
    for cut in cuts:
        kept: list[Progress] = []
        with pytest.raises(Cut):
            run(start(), resume=progress, after_step=partial(cut_at, kept, cut))
        progress = stored(kept[0])
    last = start()
    assert run(last, resume=progress) == wanted
    assert bits(last) == bits(whole)


class Cut(Exception):
    pass


def cut_at(kept: list[Progress], cut: int, steps: int, snapshot: Snapshot) -> None:
    if steps == cut:
        kept.append(snapshot())
        raise Cut


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes(base: Base, method: str) -> None:
    run, whole = work("adam"), fresh(base, method)
    wanted = run(whole)
    _, seen = watched(run, fresh(base, method))
    again = fresh(base, method)
    assert run(again, resume=stored(seen[2])) == wanted
    assert bits(again) == bits(whole)
    assert bits(again) != bits(fresh(base, method))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_training_is_a_loop_over_the_optimiser_of_torch(base: Base, optimiser: str) -> None:
    attached, other = fresh(base), fresh(base)
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    run = work(optimiser)
    run(attached)
    parameters, rate = list(other.parameters.values()), RATES[optimiser]
    stepper: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=rate)
        if optimiser == "adam"
        else torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fleet.adapt.train.accumulate", lambda _, x, y, __: steps.append((x, y)) or 0)
        run(fresh(base))
    for x, y in steps:
        stepper.zero_grad()
        functional.cross_entropy(other.module(x), y).backward()
        stepper.step()
    assert len(steps) == STEPS
    assert bits(attached) == bits(other)


def test_what_watches_sees_the_parameters_after_each_step(base: Base) -> None:
    attached, digests = fresh(base), []

    def watch(steps: int, snapshot: Snapshot) -> None:
        progress = snapshot()
        for name, parameter in attached.parameters.items():
            own = parameter.detach().numpy()
            np.testing.assert_array_equal(progress.arrays[f"parameter/{name}"], own)
        digests.append((steps, progress.steps, attached.state().digest))

    work()(attached, after_step=watch)
    assert [entry[:2] for entry in digests] == [(n, n) for n in range(1, STEPS + 1)]
    assert len({digest for *_, digest in digests}) == STEPS


def test_a_snapshot_is_made_only_when_it_is_asked_for(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    export = Stepper.export
    monkeypatch.setattr(Stepper, "export", lambda self: made.append(1) or export(self))
    work()(fresh(base), after_step=lambda steps, snapshot: steps == 4 and snapshot())
    assert made == [1]


def test_what_a_watcher_raises_stops_the_training_there(base: Base) -> None:
    attached, kept = fresh(base), []  # type: ignore[var-annotated]
    with pytest.raises(Cut):
        work()(attached, after_step=partial(cut_at, kept, 2))
    short = fresh(base)
    work()(short, order=list(order())[:2])
    assert bits(attached) == bits(short)


def test_only_what_is_attached_moves(base: Base) -> None:
    _, seen = watched(work(), fresh(base))
    attached = fresh(base, seed=5)
    trained = {id(p) for p in attached.parameters.values()}
    others = {n: p for n, p in attached.module.named_parameters() if id(p) not in trained}
    before = {n: p.detach().clone() for n, p in others.items()}
    work()(attached, resume=seen[1])
    assert others
    assert all(torch.equal(p, before[n]) for n, p in others.items())
    assert all(p.grad is None for p in others.values())


def renamed(progress: Progress) -> Progress:
    return replace(progress, arrays={"x" + key: a for key, a in progress.arrays.items()})


def cast(progress: Progress) -> Progress:
    arrays = {k: a.astype(np.float64) if a.ndim else a for k, a in progress.arrays.items()}
    return replace(progress, arrays=arrays)


@pytest.mark.parametrize(
    ("change", "optimiser", "method"),
    [
        (lambda p: replace(p, steps=STEPS + 1), "sgd", "core"),
        (lambda p: replace(p, steps=-1), "sgd", "core"),
        (lambda p: replace(p, arrays={}), "sgd", "core"),
        (renamed, "sgd", "core"),
        (cast, "sgd", "core"),
        (lambda p: p, "adam", "core"),
        (lambda p: p, "sgd", "head"),
    ],
)
def test_progress_of_another_training_is_refused_and_changes_nothing(
    base: Base, change: Any, optimiser: str, method: str
) -> None:
    _, seen = watched(work("sgd"), fresh(base))
    attached = fresh(base, method)
    with pytest.raises(MismatchError) as refused:
        work(optimiser)(attached, resume=change(seen[3]))
    assert refused.value.code == "progress-mismatch"
    assert refused.value.hint
    assert bits(attached) == bits(fresh(base, method))

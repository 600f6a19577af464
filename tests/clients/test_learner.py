from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from clients.agent.learner import Learner, Windows
from clients.agent.simulated import learner_of
from fleet.adapt.attach import single_thread
from fleet.adapt.base import Base
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.adapt.train import batches
from fleet.errors import InputError, MismatchError
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.records import Plan
from fleet.federate.releases import Release, catch_up, first_release
from fleet.federate.wire import Payload, decode_state, decode_update_header, encode_plan
from fleet.peft.core import core
from fleet.seeds import generator
from server.app import task_of
from simulations.local import _plan
from tests.simulations.tiny_fleet import RATE, MakeConfig

CLASSES = 7


@pytest.fixture(scope="module")
def learner(make_config: MakeConfig) -> Learner:
    return learner_of(make_config().for_flower(), 0)


@pytest.fixture(scope="module")
def state(learner: Learner) -> CoreState:
    layout = learner.bench.layout("core")
    random = np.random.default_rng(1)
    return CoreState.from_flat(layout, random.normal(0, 0.01, layout.size).astype(np.float32))


def make_plan(learner: Learner, config: Any, state: CoreState, /, **changes: Any) -> Plan:
    base = learner.bench.base
    plan = _plan(base, task_of(config, base, core, RATE), state, 1)
    return Plan(**{**plan.model_dump(), **changes})


def test_a_plan_is_answered_with_an_update_that_is_admitted(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    plan = make_plan(learner, make_config(), state)
    answer = learner.answer_plan(encode_plan(plan, state))
    verdict = admit(answer, plan, state.layout, learner.device, Bounds())
    assert isinstance(verdict, Admitted)
    header = decode_update_header(answer.config)
    windows = len(learner.windows.train_y)
    assert (header.examples, header.steps) == (windows, -(-windows // plan.batch))
    assert 0 < header.loss < 20
    assert verdict.norm > 0


def test_the_update_is_the_state_after_training_minus_the_state_before(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    plan = make_plan(learner, make_config(), state)
    delta, _ = learner.train(plan, state)
    after = learner.bench.attach("core", state, torch.float32)
    rng = generator(plan.seed, plan.round, learner.device, "batches")
    x, y = torch.from_numpy(learner.windows.train_x), torch.from_numpy(learner.windows.train_y)
    parameters = list(after.parameters.values())
    stepper = torch.optim.SGD(parameters, lr=plan.learning_rate, momentum=plan.momentum)
    with single_thread():
        for index in batches(len(y), batch=plan.batch, epochs=plan.epochs, generator=rng):
            stepper.zero_grad()
            functional.cross_entropy(after.module(x[index]), y[index]).backward()
            stepper.step()
    assert delta.digest == (after.state() - state).digest
    sent = decode_state(learner.answer_plan(encode_plan(plan, state)), state.layout)
    assert sent.digest == delta.digest


def test_the_same_plan_is_answered_with_the_same_bits(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    message = encode_plan(make_plan(learner, make_config(), state), state)
    again = Learner(learner.device, learner.bench.base, learner.windows)
    answers = [each.answer_plan(message) for each in (learner, learner, again)]
    assert len({answer.array.tobytes() for answer in answers}) == 1
    assert answers[0].config == answers[1].config == answers[2].config


@pytest.mark.parametrize("change", [{"seed": 1}, {"round": 2}])
def test_the_order_of_batches_depends_on_seed_and_round(
    learner: Learner, make_config: MakeConfig, state: CoreState, change: dict[str, int]
) -> None:
    plan = make_plan(learner, make_config(), state)
    other = make_plan(learner, make_config(), state, **change)
    one, two = (learner.train(each, state)[0].digest for each in (plan, other))
    assert one != two


def test_training_leaves_the_base_and_the_threads_alone(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    before, threads = learner.bench.base.digest, torch.get_num_threads()
    parameters = {n: p.copy() for n, p in parameters_of(learner.bench.network).items()}
    learner.train(make_plan(learner, make_config(), state), state)
    assert replace(learner.bench.base).digest == before
    assert torch.get_num_threads() == threads
    for name, array in parameters_of(learner.bench.network).items():
        assert np.array_equal(array, parameters[name])


def test_training_in_float64_equals_a_loop_that_moves_dense_kernels_by_hand(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    """Two paths: the core layer's bottleneck, and a dense kernel ``K + C·S`` written out."""
    oracle = Learner(learner.device, learner.bench.base, learner.windows, dtype=torch.float64)
    plan = make_plan(learner, make_config(), state)
    delta, result = oracle.train(plan, state)

    base: Base = learner.bench.base
    dense = folded_network(base).double()
    start = {n: torch.from_numpy(np.array(a)).double() for n, a in state.arrays.items()}
    cores = {n: c.clone().requires_grad_(True) for n, c in start.items()}
    speed = {n: torch.zeros_like(c) for n, c in start.items()}
    kernels = {n: p.detach().clone() for n, p in dense.named_parameters()}
    suffixes = {
        name: torch.from_numpy(
            np.array(frame.suffix(kernels[f"{name}.weight"].numpy()), np.float64)
        )[0]
        for name, frame in base.frames.items()
    }
    x = torch.from_numpy(learner.windows.train_x).double()
    y = torch.from_numpy(learner.windows.train_y)
    rng = generator(plan.seed, plan.round, learner.device, "batches")
    losses = []
    for index in batches(len(y), batch=plan.batch, epochs=plan.epochs, generator=rng):
        moved = dict(kernels)
        for name, suffix in suffixes.items():
            lift = torch.einsum("or,r...->o...", cores[f"{name}.core"], suffix)
            moved[f"{name}.weight"] = kernels[f"{name}.weight"] + lift
        logits = torch.func.functional_call(dense, moved, (x[index],))
        loss = functional.cross_entropy(logits, y[index])
        gradients = torch.autograd.grad(loss, list(cores.values()))
        for name, gradient in zip(list(cores), gradients, strict=True):
            speed[name] = plan.momentum * speed[name] + gradient
            step = cores[name].detach() - plan.learning_rate * speed[name]
            cores[name] = step.requires_grad_(True)
        losses.append(float(loss.detach()))
    for name, core_ in cores.items():
        wanted = (core_.detach() - start[name]).numpy()
        assert np.abs(delta.arrays[name] - wanted).max() < 1e-9
        assert np.abs(wanted).max() > 1e-6
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)


@pytest.mark.parametrize("name", ["base", "frame", "layout", "state"])
def test_a_plan_for_another_fleet_is_declined_with_what_differs(
    learner: Learner, make_config: MakeConfig, state: CoreState, name: str
) -> None:
    plan = make_plan(learner, make_config(), state, **{name: "0" * 64})
    with pytest.raises(MismatchError) as declined:
        learner.answer_plan(encode_plan(plan, state))
    assert declined.value.code == f"wrong-{name}"


@pytest.mark.parametrize("name", ["anchor", "ewc", "distil"])
def test_a_plan_with_guards_is_declined_where_nobody_makes_them(
    learner: Learner, make_config: MakeConfig, state: CoreState, name: str
) -> None:
    plan = make_plan(learner, make_config(), state, **{name: 0.5})
    with pytest.raises(MismatchError, match=f"asks for {name}") as declined:
        learner.answer_plan(encode_plan(plan, state))
    assert declined.value.code == "guards-unsupported"
    w = learner.windows
    able = Learner(learner.device, learner.bench.base, w, guards=lambda *_: ())
    assert able.answer_plan(encode_plan(plan, state)).config["plan"] == plan.id


def test_a_state_that_is_not_the_plans_is_declined(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    plan = make_plan(learner, make_config(), state)
    with pytest.raises(MismatchError) as declined:
        learner.answer_plan(encode_plan(plan, CoreState.zero(state.layout)))
    assert declined.value.code == "wrong-state"


def without_windows(learner: Learner) -> Learner:
    w = learner.windows
    return Learner(
        "person-99", learner.bench.base, Windows(w.train_x[:0], w.train_y[:0], w.test_x, w.test_y)
    )


def test_a_device_without_windows_declines_to_train_and_can_still_judge(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    idle = without_windows(learner)
    plan = make_plan(learner, make_config(), state)
    with pytest.raises(MismatchError) as declined:
        idle.answer_plan(encode_plan(plan, state))
    assert declined.value.code == "no-windows"
    assert idle.evaluate(state).sum() == len(learner.windows.test_y)


def test_a_device_without_test_windows_answers_with_no_counts(
    learner: Learner, state: CoreState
) -> None:
    w = learner.windows
    blind = Learner(
        "a", learner.bench.base, Windows(w.train_x, w.train_y, w.test_x[:0], w.test_y[:0])
    )
    assert blind.evaluate(state).tolist() == np.zeros((CLASSES, CLASSES), int).tolist()


def test_the_status_counts_the_windows(learner: Learner) -> None:
    status = learner.status()
    assert status.device == learner.device
    assert status.train_windows == len(learner.windows.train_y) > 0
    assert status.test_windows == len(learner.windows.test_y) > 0
    assert status.usable


def evaluation(release: Release, **changes: Any) -> Payload:
    payload = catch_up(release)
    return Payload(payload.array, {**payload.config, "method": release.method, **changes})


def test_an_evaluation_counts_each_window_by_true_and_predicted_class(
    learner: Learner, state: CoreState
) -> None:
    base = learner.bench.base
    release = Release(1, base.digest, base.frame_digest, "", "core", state)
    answer = learner.answer_evaluation(evaluation(release))
    network = folded_network(base)
    served = with_parameters(
        copy.deepcopy(network), merge(parameters_of(network), base.frames, state)
    )
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for window, truth in zip(learner.windows.test_x, learner.windows.test_y, strict=True):
        with torch.inference_mode():
            guess = int(served(torch.from_numpy(window[None])).argmax())
        counts[int(truth)][guess] += 1
    assert answer["confusion"] == [count for row in counts for count in row]
    assert answer["num-examples"] == len(learner.windows.test_y)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base": "0" * 64}, "wrong-base"),
        ({"layout": "0" * 64}, "wrong-layout"),
        ({"format": 2}, "wire-format"),
        ({"method": "head"}, "wrong-layout"),
    ],
)
def test_an_evaluation_for_another_fleet_is_declined(
    learner: Learner, changes: dict[str, Any], code: str
) -> None:
    release = first_release(learner.bench.base, "core", learner.bench.layout("core"))
    with pytest.raises(MismatchError) as declined:
        learner.answer_evaluation(evaluation(release, **changes))
    assert declined.value.code == code


def test_an_evaluation_does_not_depend_on_what_was_served_before(
    learner: Learner, state: CoreState
) -> None:
    zero = CoreState.zero(state.layout)
    moved = CoreState.from_flat(state.layout, np.full(state.layout.size, 0.5, np.float32))
    first = learner.evaluate(zero)
    other = learner.evaluate(moved)
    assert not np.array_equal(first, other)
    assert np.array_equal(learner.evaluate(zero), first)


def test_there_is_no_learner_for_a_node_beyond_the_fleet(make_config: MakeConfig) -> None:
    with pytest.raises(MismatchError, match="has 3 people") as refused:
        learner_of(make_config().for_flower(), 3)
    assert refused.value.code == "no-such-person"
    assert "num-supernodes=3" in refused.value.hint


def test_a_memory_budget_cuts_batches_and_leaves_the_update_as_it_is_up_to_rounding(
    learner: Learner, make_config: MakeConfig, state: CoreState
) -> None:
    plan = make_plan(learner, make_config(), state)
    whole = learner.memory_plan("core", plan.batch)
    assert whole is None
    base, windows = learner.bench.base, learner.windows
    roomy = Learner("person-x", base, windows, memory_budget_bytes=2**30).memory_plan("core", 16)
    assert roomy is not None
    assert (roomy.windows, roomy.parts) == (16, 1)
    tight = Learner(learner.device, base, windows, memory_budget_bytes=roomy.peak_bytes // 2)
    cut = tight.memory_plan("core", plan.batch)
    assert cut is not None
    assert cut.windows < plan.batch
    assert cut.peak_bytes <= tight.memory_budget_bytes
    expected, _ = learner.train(plan, state)
    delta, _ = tight.train(plan, state)
    assert (delta - expected).norm < 1e-3 * expected.norm


def test_a_budget_below_one_window_is_refused_with_what_it_takes(learner: Learner) -> None:
    tiny = Learner("person-x", learner.bench.base, learner.windows, memory_budget_bytes=10)
    with pytest.raises(InputError, match="training on one window takes"):
        tiny.memory_plan("core", 16)


def test_methods_that_train_whole_kernels_have_no_memory_plan(learner: Learner) -> None:
    bounded = Learner("person-x", learner.bench.base, learner.windows, memory_budget_bytes=2**30)
    assert bounded.memory_plan("full", 16) is None

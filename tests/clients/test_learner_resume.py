from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.agent.learner import Learner
from clients.agent.simulated import learner_of
from fleet.adapt.state import CoreState
from fleet.adapt.train import AfterStep, Progress
from fleet.federate.records import Plan
from fleet.peft.core import core
from server.app import task_of
from simulations.local import _plan
from tests.simulations.tiny_fleet import RATE, MakeConfig

_TIMEOUT_S = 60

# Trains a base, and with either optimiser a core, in a process of its own; prints what of PyTorch's
# compiler it loaded.
_FRESH = """
import json, sys
from pathlib import Path
import numpy as np
from clients.agent.learner import Learner, Windows
from fleet.adapt.base import load_base
from fleet.adapt.state import CoreState
from fleet.federate.records import Plan
from fleet.models.pretrain import pretrain

base = load_base(Path(sys.argv[1]))
model = base.record.model
x = np.ones((6, model.channels, model.window), np.float32)
y = np.arange(6) % model.classes
pretrain(model, x, y, seed=0, epochs=1)
learner = Learner("a", base, Windows(x, y, x, y))
state = CoreState.zero(learner.bench.layout("core"))
for optimiser, budget in (("sgd", 0), ("adam", 2**30)):
    learner.memory_budget_bytes = budget
    plan = Plan.model_validate(json.loads(sys.argv[2]) | {"optimiser": optimiser})
    _, result = learner.train(plan, state)
    assert result.steps == 2, result
roots = ("torch._dynamo", "torch._inductor", "sympy", "triton")
print(json.dumps([name for name in sys.modules if name in roots]))
"""


@pytest.fixture(scope="module")
def learner(make_config: MakeConfig) -> Learner:
    return learner_of(make_config().for_flower(), 0)


@pytest.fixture(scope="module")
def state(learner: Learner) -> CoreState:
    return CoreState.zero(learner.bench.layout("core"))


@pytest.fixture(scope="module")
def plan(learner: Learner, make_config: MakeConfig, state: CoreState) -> Plan:
    base = learner.bench.base
    return _plan(base, task_of(make_config(), base, core, RATE), state, 1)


def collect(into: list[Progress]) -> AfterStep:
    return lambda _, snapshot: into.append(snapshot())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_learner_that_was_stopped_finds_the_same_update(
    learner: Learner, plan: Plan, state: CoreState, optimiser: str
) -> None:
    asked = plan.model_copy(update={"optimiser": optimiser, "batch": 4})
    seen: list[Progress] = []
    delta, result = learner.train(asked, state, after_step=collect(seen))
    assert result.steps == len(seen) > 2
    again = Learner(learner.device, learner.bench.base, learner.windows)
    for progress in (seen[0], seen[-1]):
        rest: list[Progress] = []
        resumed, told = again.train(asked, state, resume=progress, after_step=collect(rest))
        assert resumed.digest == delta.digest
        assert told == result
        assert [p.steps for p in rest] == list(range(progress.steps + 1, result.steps + 1))
    assert np.abs(delta.flat()).max() > 0


def test_devices_and_bases_are_trained_without_loading_the_compiler_of_torch(
    learner: Learner, plan: Plan, tiny_base_file: Path
) -> None:
    asked = plan.model_copy(update={"batch": 3, "epochs": 1}).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tiny_base_file), asked],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []

"""One training of a private core, and the judgement on windows that were kept back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.answering.training import RECIPE
from clients.agent.learner import Learner, Workbench
from clients.agent.private.settings import Personal
from clients.agent.private.split import Sides
from clients.agent.serving.kept import KeptRelease
from clients.agent.store import Store
from fleet.adapt.attach import single_thread
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.adapt.train import AfterStep, Progress
from fleet.continual.guards import Anchor
from fleet.federate.records import Plan
from fleet.measure.f1 import confusion, macro_f1_present

__all__ = ["HIGHEST_RATE", "helps", "judged", "learned", "plan_of", "recipe_of"]

HIGHEST_RATE = 100.0
"""Of a learning rate, as in a plan."""
FORWARD_WINDOWS = 256


def plan_of(store: Store, release: KeptRelease) -> Plan | None:
    """Return the last plan that the device answered, if it trained what the release holds."""
    found = store.state.get(RECIPE)
    try:
        plan = Plan.model_validate(found) if found else None
    except ValueError:  # of a later Corefleet, or an earlier one
        return None
    return plan if plan is not None and plan.method == release.method else None


def recipe_of(plan: Plan, options: Personal, release: int) -> Plan:
    """Return how a private core is trained on a release: as the last plan, with the own options."""
    rate = min(HIGHEST_RATE, plan.learning_rate * options.rate)
    return plan.model_copy(
        update={
            "round": max(1, release),
            "release": release,
            "epochs": options.epochs,
            "learning_rate": rate,
            "max_steps": 0,
        }
    )


def learned(
    name: str,
    base: Base,
    sides: Sides,
    recipe: Plan,
    options: Personal,
    release: CoreState,
    before: CoreState | None,
    *,
    bench: Workbench | None = None,
    memory_budget: int = 0,
    resume: Progress | None = None,
    after_step: AfterStep | None = None,
) -> CoreState:
    """Train on top of a release and return the private core.

    Args:
        name: Of the device; the order of the windows comes from it.
        base: The device's base.
        sides: The windows.
        recipe: From :func:`recipe_of`.
        options: The pull towards the release.
        release: Its core state.
        before: The private core so far, which training goes on from; None to begin.
        bench: What it computes with; None for what all learners of the base share.
        memory_budget: Bytes of a step beyond parameters and optimiser state; 0 for no limit.
        resume: As of :func:`fleet.adapt.train.train`, and so are the errors.
        after_step: Likewise.
    """
    start = release if before is None else release + before
    learner = Learner(
        f"{name}/personal",
        base,
        sides.windows,
        memory_budget_bytes=memory_budget,
        bench=bench,
        guards=lambda *_: [Anchor(release, options.anchor)],
    )
    delta, _ = learner.train(recipe, start, resume=resume, after_step=after_step)
    return start + delta - release


def judged(
    before: tuple[Workbench, CoreState], after: tuple[Workbench, CoreState], sides: Sides
) -> dict[str, int | float]:
    """Return what the windows kept back say of one state and of another.

    Args:
        before: What it computes with and its core state, e.g. the release's.
        after: Likewise, e.g. of the release with the private core.
        sides: The windows.

    Returns:
        ``windows``; mean cross-entropy in nats, ``loss-before`` (without) and ``loss-after``; and
        macro-F1 over the classes that are there, ``f1-before`` and ``f1-after``. Of no windows
        ``windows`` alone.
    """
    x, y = sides.windows.test_x, sides.windows.test_y
    found: dict[str, int | float] = {"windows": len(y)}
    if not len(y):
        return found
    for when, (bench, state) in (("before", before), ("after", after)):
        loss, score = _figures(bench, state, x, y)
        found |= {f"loss-{when}": loss, f"f1-{when}": score}
    return found


def helps(found: dict[str, Any]) -> bool:
    """Tell whether the private core is better on the windows kept back; of none it is not.

    Under own statistics it must also be better than the release under the fleet's.
    """
    if not found["windows"]:
        return False
    least = min(found["loss-before"], found.get("loss-fleet", found["loss-before"]))
    return bool(found["loss-after"] < least)


def _figures(
    bench: Workbench, state: CoreState, x: NDArray[np.float32], y: NDArray[np.int64]
) -> tuple[float, float]:
    wanted = torch.from_numpy(y)
    with torch.inference_mode(), single_thread():
        network = bench.served(state)
        parts = [network(part) for part in torch.split(torch.from_numpy(x), FORWARD_WINDOWS)]
        logits = torch.cat(parts)
        loss = float(torch.nn.functional.cross_entropy(logits.double(), wanted))
    counts = confusion(y, logits.argmax(dim=1).numpy(), len(bench.base.record.labels))
    # A loss that is not finite is worse than any, and has no place in JSON.
    return (loss if np.isfinite(loss) else float(np.finfo(np.float64).max)), macro_f1_present(
        counts
    )

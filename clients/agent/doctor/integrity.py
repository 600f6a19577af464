"""Checks of what the device must not lose: its store, and the models that it serves."""

from __future__ import annotations

import importlib.util
import json
import time
from typing import Any

from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped, warn
from clients.agent.doctor.machine import Run, run_process
from fleet.errors import FleetError

__all__ = ["MODEL_LIMIT_S", "check_model", "check_store"]

MODEL_LIMIT_S = 90.0
STORE = "clients.agent.store"
SERVING = "clients.agent.serving"
TRIAL = "clients.agent.doctor.model_trial"
REPAIR = "Start the agent: it sets the damaged file aside and keeps what is whole."


def present(module: str) -> bool:
    """Tell whether a module is installed, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def check_store(subject: Subject) -> Finding:
    """The store of windows and labels is whole."""
    if not present(STORE):
        return skipped("this installation has no store")
    from clients.agent.store.repair import damage_of, quarantined
    from clients.agent.store.store import FILE_NAME, open_reader

    path = subject.state / FILE_NAME
    if not path.is_file():
        return skipped(f"there is no {FILE_NAME} yet; the first ingest makes it")
    try:
        with open_reader(subject.state, clock=time.time) as store:
            damage = damage_of(store.database)
    except FleetError as error:
        return failed(error.message, error.hint or REPAIR)
    if damage:
        return failed(damage, REPAIR)
    aside = [each.name for each in quarantined(path)]
    if aside:
        return warn(
            f"the store is whole; {len(aside)} file(s) of damaged ones are kept: {aside[-1]}",
            f"Look at them, then delete them from {subject.state}.",
        )
    return fine(f"{path} is whole")


def check_model(subject: Subject, run: Run = run_process) -> Finding:
    """Base, served models and kept releases are whole."""
    if not present(SERVING):
        return skipped("this installation serves no model")
    if not (subject.state / "model").is_dir():
        return skipped("no base is installed yet", "fleet-device init --base FILE")
    try:
        ended = run([subject.python, "-m", TRIAL, str(subject.state)], MODEL_LIMIT_S)
    except OSError as error:
        return skipped(f"{subject.python} cannot be started ({error.strerror})")
    if ended is None:
        return failed(f"the models were not read within {MODEL_LIMIT_S:g} s", "Check the disk.")
    checks = _list_of(ended.output)
    if checks is None:
        last = (ended.errors.strip().splitlines() or ["nothing was printed"])[-1]
        return skipped(f"the models could not be read: {last[:200]}", "See the check torch.")
    broken = [f"{each['what']}: {each['problem']}" for each in checks if each.get("problem")]
    if broken:
        return failed("; ".join(broken), "fleet-device release verify; then start the agent.")
    return fine(f"{len(checks)} file(s) read back whole")


def _list_of(output: str) -> list[dict[str, Any]] | None:
    for line in reversed(output.strip().splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, list):
            return found
    return None

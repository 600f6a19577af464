"""The doctor: is this device able to do its work, and if not, what is the next step?

Every check ends in a finding within its limit, whatever happens in it; none changes the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from clients.agent.config import load_config
from clients.agent.doctor.clock import check_clock
from clients.agent.doctor.enrolled import CONNECT_LIMIT_S as ENROLLED_LIMIT_S
from clients.agent.doctor.enrolled import check_enrolled
from clients.agent.doctor.finding import Check, Finding, Result, Subject, run_check
from clients.agent.doctor.integrity import MODEL_LIMIT_S, check_model, check_store
from clients.agent.doctor.keys import check_certificate, check_key
from clients.agent.doctor.machine import (
    TORCH_LIMIT_S,
    check_config,
    check_disk,
    check_python,
    check_torch,
)
from clients.agent.doctor.releases import check_release_key
from clients.agent.doctor.running import check_agent
from clients.agent.doctor.server import CONNECT_LIMIT_S, check_server
from fleet.errors import FleetError

__all__ = ["CHECKS", "Check", "Finding", "Result", "Subject", "examine", "subject_of", "worst"]

LOCAL_LIMIT_S = 10.0
SLACK_S = 2.0

CHECKS: tuple[Check, ...] = (
    Check("python", LOCAL_LIMIT_S, check_python),
    Check("config", LOCAL_LIMIT_S, check_config),
    Check("disk", LOCAL_LIMIT_S, check_disk),
    Check("clock", LOCAL_LIMIT_S, check_clock),
    Check("key", LOCAL_LIMIT_S, check_key),
    Check("certificate", LOCAL_LIMIT_S, check_certificate),
    Check("release-key", LOCAL_LIMIT_S, check_release_key),
    Check("server", CONNECT_LIMIT_S + SLACK_S, check_server),
    Check("enrolled", ENROLLED_LIMIT_S + SLACK_S, check_enrolled),
    Check("store", LOCAL_LIMIT_S, check_store),
    Check("torch", TORCH_LIMIT_S + SLACK_S, check_torch),
    Check("model", MODEL_LIMIT_S + SLACK_S, check_model),
    Check("agent", LOCAL_LIMIT_S, check_agent),
)


def subject_of(state: Path) -> Subject:
    """Return the device of a state directory, whatever state that is in."""
    try:
        config = load_config(state)
    except FleetError:  # the check ``config`` says what is wrong with it
        return Subject(state, None, sys.executable)
    return Subject(state, config, config.python_of("agent"))


def examine(
    subject: Subject, checks: Sequence[Check] = CHECKS, only: Iterable[str] = ()
) -> list[Finding]:
    """Run the checks one after the other; never raises.

    Args:
        subject: The device.
        checks: In the order of the report.
        only: Names of the checks to run; empty for all.
    """
    wanted = set(only)
    return [run_check(each, subject) for each in checks if not wanted or each.name in wanted]


def worst(findings: Iterable[Finding]) -> Result:
    """Return the worst result of a report; ``skip`` is no failure."""
    results = {finding.result for finding in findings}
    return next((each for each in (Result.fail, Result.warn) if each in results), Result.ok)

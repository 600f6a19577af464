"""What a check found: result, detail and a fix."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from clients.agent.bounded import within
from clients.agent.config import DeviceConfig

__all__ = [
    "Check",
    "Finding",
    "Result",
    "Subject",
    "failed",
    "fine",
    "run_check",
    "skipped",
    "warn",
]


class Result(str, Enum):
    """How a check ended."""

    ok = "ok"
    warn = "warn"
    fail = "fail"
    skip = "skip"


@dataclass(frozen=True)
class Finding:
    """Outcome of one check.

    Args:
        check: Name of the check, stable.
        result: ``skip``: there was nothing to check, or no way to.
        detail: What was seen, in one sentence.
        fix: The next step; empty when nothing is wrong.
        seconds: How long the check took.
    """

    check: str
    result: Result
    detail: str
    fix: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, str | float]:
        """Return the finding as JSON holds it."""
        return {
            "check": self.check,
            "result": self.result.value,
            "detail": self.detail,
            "fix": self.fix,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Subject:
    """The device that is examined.

    Args:
        state: State directory, which may be absent.
        config: Its configuration; ``None`` when there is none that can be read.
        python: Interpreter of the agent, whose torch is tried.
    """

    state: Path
    config: DeviceConfig | None
    python: str


@dataclass(frozen=True)
class Check:
    """A check and the seconds that it may take.

    Args:
        name: Stable kebab-case name.
        limit_s: Seconds after which nothing waits for it any more.
        run: The check; its findings' ``check`` need not be set.
    """

    name: str
    limit_s: float
    run: Callable[[Subject], Finding]


def fine(detail: str) -> Finding:
    """Return a finding: nothing is wrong."""
    return Finding("", Result.ok, detail)


def skipped(detail: str, fix: str = "") -> Finding:
    """Return a finding: there was nothing to check."""
    return Finding("", Result.skip, detail, fix)


def warn(detail: str, fix: str) -> Finding:
    """Return a finding: the device works, for now or in part."""
    return Finding("", Result.warn, detail, fix)


def failed(detail: str, fix: str) -> Finding:
    """Return a finding: the device cannot do its work."""
    return Finding("", Result.fail, detail, fix)


def run_check(check: Check, subject: Subject) -> Finding:
    """Run a check in bounded time; whatever it does, a finding comes back."""
    start = time.monotonic()
    try:
        ended, finding = within(check.limit_s, lambda: check.run(subject))
    except Exception as error:
        ended, finding = (
            True,
            failed(
                f"the check itself failed: {type(error).__name__}: {error}",
                "Report this as a bug in Corefleet, with this line.",
            ),
        )
    if finding is None:
        why = f"no answer within {check.limit_s:g} s" if not ended else "the check said nothing"
        finding = failed(why, "Try again; if it stays, look at what the detail names.")
    seconds = time.monotonic() - start
    return Finding(check.name, finding.result, finding.detail, finding.fix, seconds)

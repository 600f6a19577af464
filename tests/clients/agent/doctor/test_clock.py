from __future__ import annotations

from datetime import datetime, timezone

import pytest

from clients.agent.doctor.clock import check_clock, skew_finding
from clients.agent.doctor.finding import Result, Subject


def at(year: int) -> datetime:
    return datetime(year, 6, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("year", [1970, 2000, 2025, 2107])
def test_a_clock_that_was_never_set_fails(subject: Subject, year: int) -> None:
    finding = check_clock(subject, lambda: at(year), lambda command, limit_s: "yes")
    assert finding.result is Result.fail
    assert "set-ntp" in finding.fix


@pytest.mark.parametrize(
    ("answer", "result"), [("yes", Result.ok), ("no", Result.warn), (None, Result.ok)]
)
def test_the_system_is_asked_whether_ntp_keeps_the_clock(
    subject: Subject, answer: str | None, result: Result
) -> None:
    finding = check_clock(subject, lambda: at(2026), lambda command, limit_s: answer)
    assert finding.result is result


@pytest.mark.parametrize(
    ("skew_s", "result"),
    [
        (0.4, None),
        (-1.5, None),
        (3.0, Result.warn),
        (-60.0, Result.warn),
        (4.5, Result.fail),
        (-305.0, Result.fail),
        (172_800.0, Result.fail),
    ],
)
def test_skew_is_judged_by_the_servers_window(skew_s: float, result: Result | None) -> None:
    finding = skew_finding(skew_s)
    assert (finding.result if finding else None) is result
    if result is Result.fail and finding is not None:
        assert ("ahead of" if skew_s > 0 else "behind") in finding.detail

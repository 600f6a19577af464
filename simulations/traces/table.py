"""The rows in which reports show the account of a run in the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["field_cells", "field_headings"]


def field_headings(target_f1: float | None) -> list[str]:
    """Return the headings.

    >>> field_headings(0.9)[2]
    'hours to F1 0.9'
    """
    return [
        "seconds per round",
        "hours in all",
        f"hours to F1 {target_f1:g}" if target_f1 else "hours to --target-f1",
        "accepted",
        "no reply",
        "of these offline",
        "late for a closed round",
        "duplicates",
        "refused otherwise",
        "abandoned rounds",
    ]


def field_cells(account: Mapping[str, Any]) -> list[str]:
    """Return the cells below them, see :func:`simulations.traces.account.account_of`."""
    seconds, reasons = account["seconds_per_round"]["median"], dict(account["reasons"])
    to_target = account["hours_to_target"]
    reached = "not reached" if account["target_f1"] else "–"
    silent, doubled = reasons.pop("no-reply", 0), reasons.pop("duplicate", 0)
    return [
        "n/a" if seconds is None else f"{seconds:,.1f}",
        _hours(account["hours"]),
        reached if to_target is None else _hours(to_target),
        f"{account['accepted']:,} of {account['asked']:,}",
        f"{silent:,}",
        f"{account['offline']:,}",
        f"{account['late']:,}",
        f"{doubled:,}",
        f"{sum(reasons.values()):,}",
        f"{account['abandoned']:,}",
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 1 else f"{hours:.3g}"

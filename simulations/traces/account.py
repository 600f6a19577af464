"""What a run with a trace came to in the field's time: from its records alone.

So any run's can be made anew. A resumed run has the account of an unbroken one but for ``late``:
answers that were under way when it stopped are not heard of again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

__all__ = ["account_of"]

HOUR_S = 3600.0


def account_of(
    rounds: Sequence[dict[str, Any]],
    abandoned: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    target_f1: float,
    online: Callable[[str, float], bool],
) -> dict[str, Any]:
    """Account for a method's simulated time and for who did not take part.

    Args:
        rounds: Records of whole rounds, in order.
        abandoned: Records of the last abandoned try of each round that has one.
        evaluations: Evaluations, by release.
        target_f1: Pooled macro-F1 whose time is asked for; 0 for none.
        online: Tells whether a device, by its name, is online at a simulated second.

    Returns:
        ``seconds_per_round`` (median, least and most, from push to close), ``hours`` from the start
        to the last round's close, ``hours_to_target`` (None when it was not reached or not asked
        for), ``reasons`` of devices without an update by the coordinator's codes, ``late`` answers
        to closed rounds, ``offline`` devices among those of ``no-reply`` when the round closed, and
        ``abandoned`` rounds.
    """
    lengths = [each["closed_at_s"] - each["opened_at_s"] for each in rounds]
    tried = [*rounds, *abandoned]
    silent = [
        (refusal["device"], record["closed_at_s"])
        for record in tried
        for refusal in record["refused"]
        if refusal["reason"] == "no-reply"
    ]
    reasons = Counter(refusal["reason"] for each in tried for refusal in each["refused"])
    return {
        "seconds_per_round": {
            "median": round(median(lengths), 3) if lengths else None,
            "least": round(min(lengths), 3) if lengths else None,
            "most": round(max(lengths), 3) if lengths else None,
        },
        "hours": round(rounds[-1]["closed_at_s"] / HOUR_S, 6) if rounds else 0.0,
        "target_f1": target_f1 or None,
        "hours_to_target": _hours_to(target_f1, rounds, evaluations),
        "asked": sum(len(each["selected"]) for each in tried),
        "accepted": sum(len(each["accepted"]) for each in rounds),
        "reasons": dict(sorted(reasons.items())),
        "offline": sum(not online(device, at) for device, at in silent),
        "late": sum(len(each["late"]) for each in tried),
        "abandoned": len(abandoned),
    }


def _hours_to(
    target_f1: float, rounds: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> float | None:
    """Return when the first release that was judged to reach the target was there."""
    # Release 0, the base, is there from the start.
    released = {0: 0.0} | {each["round"]: each["closed_at_s"] for each in rounds}
    for each in evaluations:
        f1 = each["macro_f1"]
        if target_f1 and f1 is not None and f1 >= target_f1:
            return round(float(released[each["release"]]) / HOUR_S, 6)
    return None

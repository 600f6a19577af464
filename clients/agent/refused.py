"""What Flower's SuperNode says when its server does not let it in, in words."""

from __future__ import annotations

from collections.abc import Sequence

from fleet.supervise.child import Exit

__all__ = ["NOT_KNOWN", "REFUSED_CODE", "refusal_of"]

REFUSED_CODE = 2004
"""Flower 1.41: ``ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED``."""
NOT_KNOWN = (
    "the server does not know this key, or has revoked it;"
    " the operator sees it in `fleet device list --all`"
)
# One code for both: a node that is online already is not activated again, and its session outlasts
# a SuperNode that could not take leave.
LEFT = "unless a SuperNode of this device was killed within the last minute"
ASK = "`fleet-device doctor --only enrolled` tells"
UNREACHABLE = "it did not get through to the server; `fleet-device doctor` tells why"
CONNECTION_CODE = "Exit Code: 305"


def refusal_of(end: Exit, lines: Sequence[str]) -> str:
    """Return why the server did not let the SuperNode in; ``""``: it did not end for that.

    Args:
        end: How the SuperNode ended.
        lines: The newest that it printed, newest first.
    """
    if end.status <= 0 or not any(CONNECTION_CODE in line for line in lines):
        return ""
    if any(f"[code: {REFUSED_CODE}]" in line for line in lines):
        return f"{NOT_KNOWN} ({LEFT}; {ASK})"
    return UNREACHABLE

from __future__ import annotations

import pytest

from clients.agent.refused import NOT_KNOWN, refusal_of
from fleet.supervise.child import Exit

# As Flower 1.41 prints it, and what its Uvicorn says after it.
PRINTED = (
    "\x1b[91mERROR \x1b[0m:     Exit Code: 305",
    "Failed to initialize the connection to the SuperLink.",
    "[code: 2004] Failed to activate SuperNode.",
    "The SuperNode could not establish a connection to the SuperLink.",
    "INFO:     Finished server process [17552]",
)


def test_a_key_that_the_server_refuses_is_named_as_the_cause() -> None:
    told = refusal_of(Exit(1), PRINTED[::-1])
    assert told.startswith(NOT_KNOWN)
    assert "fleet device list --all" in told
    assert "fleet-device doctor --only enrolled" in told


def test_a_server_that_is_away_is_not_taken_for_a_refusal() -> None:
    told = refusal_of(Exit(1), [line for line in PRINTED if "2004" not in line])
    assert "did not get through" in told
    assert "revoked" not in told


@pytest.mark.parametrize(
    ("status", "lines"), [(1, PRINTED[1:]), (0, PRINTED), (-9, PRINTED), (1, ())]
)
def test_another_end_has_no_cause_that_is_known(status: int, lines: tuple[str, ...]) -> None:
    assert refusal_of(Exit(status), lines) == ""

"""Whether enough devices are left for the policy once one is kept out."""

from __future__ import annotations

from typing import Any

from fleet.federate.rule import read_rule
from server.control.verbs.fleet import Fleet
from server.registry.records import Device, DeviceState

__all__ = ["shortage"]


def shortage(fleet: Fleet, without: Device) -> dict[str, Any] | None:
    """Tell that no round can open any more once a device is kept out.

    Args:
        fleet: Which.
        without: The device.

    Returns:
        As JSON: how many devices are ``left`` that the policy's tags let in, how many it
        ``needs``, both in one ``sentence``, and the ``next`` step. None where enough are left, and
        where there is no policy.
    """
    held = fleet.registry.policy.newest()
    if held is None:
        return None
    policy = held.policy
    wanted, unwanted = set(policy.tags), set(policy.without_tags)
    left = [
        each.name
        for each in fleet.registry.devices.all(state=DeviceState.enrolled)
        if each.name != without.name and wanted <= set(each.tags) and not unwanted & set(each.tags)
    ]
    # What the service asks for before it opens a round, as far as it does not hang on who is there.
    limits = {name: getattr(policy, name) for name in ("minimum", "quorum", "cohort")}
    limits["rule"] = read_rule(policy.rule).fewest
    needs = max(limits.values())
    if len(left) >= needs:
        return None
    which = next(name for name, value in limits.items() if value == needs)
    devices = f"{len(left)} device{'' if len(left) == 1 else 's'}"
    lower = " ".join(f"{name}={len(left)}" for name, least in limits.items() if least > len(left))
    step = "enrol another: fleet device enroll"
    if left and limits["rule"] <= len(left):
        step += f"; or ask fewer: fleet policy set {lower} --yes"
    return {
        "left": len(left),
        "needs": needs,
        "sentence": f"no round can open: {devices} left, the policy's {which} needs {needs}",
        "next": step,
    }

"""Roles: what an operator's certificate allows, each all that the one before it does."""

from __future__ import annotations

from enum import Enum

__all__ = ["Role"]


class Role(str, Enum):
    """What somebody may do.

    ``viewer`` reads; ``operator`` also looks after devices, rounds and releases; ``admin`` also
    decides who belongs to the fleet and takes copies of everything.
    """

    viewer = "viewer"
    operator = "operator"
    admin = "admin"

    def allows(self, needed: Role) -> bool:
        """Tell whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)

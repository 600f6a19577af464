"""New frames in a continual run, where the old ones are exhausted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clients.agent.probing import energy_of
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.continual.exhaustion import Streak, outside
from fleet.continual.growth import rebased
from fleet.errors import FrameError, MismatchError
from server.messages import Traffic
from simulations.continual.chain import Chain
from simulations.continual.devices import Devices
from simulations.continual.strategies import Strategy

__all__ = ["Renewal"]

# Two float64 of each layer.
ENERGY_BYTES = 16


class Renewal:
    """Watches the gradient energy outside the frames, and makes the base anew when it is due.

    Args:
        strategy: Its ``rebase_…`` say when.
        devices: The run's.
    """

    def __init__(self, strategy: Strategy, devices: Devices) -> None:
        self._strategy, self._devices = strategy, devices
        self._streak, self._due = Streak(), False
        self._record: dict[str, Any] = {}

    def resume(self, record: Mapping[str, Any]) -> None:
        """Go on behind a period."""
        self._streak = Streak(**record["streak"]) if "streak" in record else Streak()

    def measure(
        self, numbers: Sequence[int], period: int, state: CoreState, traffic: Traffic
    ) -> None:
        """Ask devices for the energy of their gradients under a release.

        Args:
            numbers: Devices with windows that were fresh in the period's round.
            period: The period.
            state: The release's.
            traffic: What this sends is added to its bytes.
        """
        above = self._strategy.rebase_above
        if above is None:
            return
        devices = self._devices
        found = [energy_of(devices.each[n], state, devices.look(n, period).fresh) for n in numbers]
        traffic.bytes_up += ENERGY_BYTES * sum(map(len, found))
        share, layers = outside(found)
        self._streak, self._due = self._streak.after(
            share,
            above=above,
            rounds=self._strategy.rebase_rounds,
            apart=self._strategy.rebase_apart,
        )
        self._record = {
            "share": round(share, 6),
            "layers": {name: round(value, 6) for name, value in layers.items()},
        }

    def renew(self, chain: Chain, frames: Callable[[Base], Base] | None) -> None:
        """Go on with a new base, if that is due; where none can be made the old one stays."""
        if not self._due or frames is None:
            return
        self._due = False
        old = chain.bench.base
        try:
            chain.rebase(frames(rebased(old, chain.release.state, old.frames)))
        except (FrameError, MismatchError) as error:
            self._record |= {"rebased": False, "reason": str(error)}
        else:
            self._record |= {"rebased": True}

    def record(self) -> dict[str, Any]:
        """Return what a period's record keeps, once."""
        if self._strategy.rebase_above is None:
            return {}
        found, self._record = self._record, {}
        streak = {"in_a_row": self._streak.in_a_row, "since": self._streak.since}
        return {"streak": streak} | ({"outside": found} if found else {})

"""Stacks: what every device has for itself, side by side, and whose turn it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["Stacks"]


class Stacks:
    """Each trained entry once per device, and the devices whose windows run at present.

    Beside these a device may have affine maps of its own, which nobody trains.

    A network's operations all hold the same stacks; whoever runs the network says beforehand which
    devices' windows it is given.

    Args:
        start: Where every device starts, by entry name.
        devices: How many there are.
    """

    def __init__(self, start: Mapping[str, torch.Tensor], devices: int) -> None:
        self.begin(start)
        self.restart(devices)

    def begin(self, start: Mapping[str, torch.Tensor]) -> None:
        """Let every device start elsewhere from the next :meth:`restart` on."""
        self.start = {name: value.detach() for name, value in start.items()}

    def restart(self, devices: int) -> None:
        """Put ``devices`` devices at the start, without maps; what was before is forgotten."""
        self.values = {
            name: value.expand(devices, *value.shape).clone() for name, value in self.start.items()
        }
        self._maps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.run(0, devices)

    def map_by(self, name: str, scale: torch.Tensor, shift: torch.Tensor) -> None:
        """Give every device a scale and a shift at a place, ``(devices, channels)`` each."""
        self._maps[name] = scale, shift

    def run(self, first: int, last: int) -> None:
        """Say that the windows to come are those of the devices from ``first`` up to ``last``."""
        self._first, self._last = first, last

    @property
    def running(self) -> int:
        """Devices whose windows run."""
        return self._last - self._first

    @property
    def alone(self) -> bool:
        """Whether one device's windows run by themselves."""
        return self.running == 1

    def of(self, entry: str) -> torch.Tensor:
        """Return an entry of the running devices, ``(running, *shape)``; a view."""
        return self.values[entry][self._first : self._last]

    def only(self, entry: str) -> torch.Tensor:
        """Return an entry of the one running device; a view."""
        if not self.alone:
            raise ValueError(f"{self.running} devices run, not one")
        return self.values[entry][self._first]

    def maps(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return scale and shift of the running devices, ``(running, channels)`` each, or None."""
        if name not in self._maps:
            return None
        scale, shift = self._maps[name]
        return scale[self._first : self._last], shift[self._first : self._last]

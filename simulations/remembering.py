"""A run's folder that also keeps what compression has lost, a file for the last release.

DIR/residuals/000001.safetensors
"""

from __future__ import annotations

from typing import Any

from clients.agent.residuals import Residuals
from fleet.federate.releases import Release
from server.coordinator import RoundRecord
from server.rounds import Traffic
from server.store import RunFolder

__all__ = ["RememberingFolder"]


class RememberingFolder(RunFolder):
    """Begins the residuals where the folder's last whole round left them.

    Args:
        folder: As :class:`server.store.RunFolder`, and so is everything named.
        residuals: Of the run's devices.

    Raises:
        StorageError: ``residuals-damaged``.
    """

    def __init__(self, folder: Any, residuals: Residuals, **named: Any) -> None:
        super().__init__(folder, **named)
        self._residuals = residuals
        numbers = self.round_numbers()
        if numbers:
            residuals.read(self._file(numbers[-1]))
        else:
            residuals.begin({})

    def publish(self, record: RoundRecord, release: Release | None, traffic: Traffic) -> None:
        """Keep a round's release and record, and the residuals before them."""
        if release is None:
            super().publish(record, release, traffic)
            return
        # The round counts once its record is there, so these come first and the old ones go last.
        self._residuals.write(self._file(record.round))
        super().publish(record, release, traffic)
        for path in self._file(0).parent.glob("[0-9]*.safetensors"):
            if int(path.stem) < record.round:
                path.unlink(missing_ok=True)

    def _file(self, number: int) -> Any:
        return self.folder / "residuals" / f"{number:06d}.safetensors"

"""The log of the policy's decisions, each with the readings that it was made from."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from clients.agent.policy import EVENT, Decision

__all__ = ["LOG_BYTES", "DecisionLog"]

LOG_BYTES = 2**20

_log = logging.getLogger(__name__)


class DecisionLog:
    """Decisions as JSON lines in one file, which is bounded: half of it goes when it is full.

    Args:
        path: The file; ``decisions.jsonl`` in the state directory.
        cap_bytes: Most bytes of the file.
    """

    def __init__(self, path: Path, cap_bytes: int = LOG_BYTES) -> None:
        self.path = path
        self.cap_bytes = cap_bytes

    def write(self, decision: Decision) -> None:
        """Append a decision, and log it; a full disk loses the line, not the device."""
        record = decision.record()
        line = json.dumps(record, allow_nan=False)
        _log.debug("%s %s", EVENT, line)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            if self.path.stat().st_size > self.cap_bytes:
                self._halve()
        except OSError as error:
            _log.warning("%s could not be written: %s", self.path, error.strerror)

    def last(self) -> dict[str, Any] | None:
        """Return the newest whole record; ``None`` when there is none."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a device that lost power
                continue
            if isinstance(record, dict):
                return record
        return None

    def _halve(self) -> None:
        kept = self.path.read_bytes()[-self.cap_bytes // 2 :].partition(b"\n")[2]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(kept)
        os.replace(temporary, self.path)

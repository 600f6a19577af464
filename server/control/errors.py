"""Errors of the control API, beside those of ``fleet.errors``.

FleetError
├── AccessError   2   no connection, no certificate, or one without the role
├── LateError     3   a bounded wait ran out
└── ToldError     *   what a server told, with the server's own exit code
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet.errors import FleetError

__all__ = ["AccessError", "LateError", "ToldError"]


class AccessError(FleetError):
    """The server does not answer, or refuses whoever asks."""

    exit_code = 2


class LateError(FleetError):
    """What was waited for did not happen in time."""

    exit_code = 3


class ToldError(FleetError):
    """An error that came from a server, told as if it had been raised here.

    Args:
        code: As in the server's error.
        message: Its sentence.
        hint: Its next step.
        exit_code: Its exit code.
    """

    def __init__(self, code: str, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(code, message, hint)
        self.exit_code = exit_code

    @classmethod
    def of(cls, envelope: Mapping[str, Any]) -> ToldError:
        """Make the error of an error envelope; see ``fleet.commands.error_envelope``."""
        told = {name: str(envelope.get(name, "")) for name in ("error_code", "message", "hint")}
        code = envelope.get("exit_code")
        exit_code = code if isinstance(code, int) and 1 <= code <= 255 else cls.exit_code
        return cls(told["error_code"] or "unknown", told["message"], told["hint"], exit_code)

    def __reduce__(self) -> Any:
        return type(self), (self.code, self.message, self.hint, self.exit_code)

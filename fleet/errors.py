"""Every error that Corefleet raises on purpose.

    FleetError                       exit
    ├── InputError                   4   bad arguments, configuration or files
    │   ├── DataError                4   a data set breaks the canonical format
    │   ├── ModelError               4   unknown or unsuitable model
    │   ├── FrameError               4   a frame that cannot be made (rank, spectrum, layer)
    │   └── MismatchError            4   two artifacts that do not belong together
    ├── StorageError                 1   a file that could not be written or read back
    ├── RoundError                   1   a round or run that ended without its result
    │   └── TooFewDevices            3   a bounded wait for devices ran out
    ├── UnavailableError             4   an extra or service that this command needs is absent
    └── Interrupted                130   the user pressed Ctrl-C; the code is the shells' own

An error carries a stable ``code``, one sentence that states the rule and the offending value,
a ``hint`` with the next step, and the process's exit code.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "DataError",
    "FleetError",
    "FrameError",
    "InputError",
    "Interrupted",
    "MismatchError",
    "ModelError",
    "RoundError",
    "StorageError",
    "TooFewDevices",
    "UnavailableError",
]


class FleetError(Exception):
    """Base of all deliberate errors; catch it to catch them all.

    Args:
        code: Stable kebab-case identifier, e.g. ``rank-too-large``.
        message: One sentence: the rule and the value that broke it.
        hint: The next step, usually a command.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[FleetError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.hint)


class InputError(FleetError):
    """An argument, a configuration value or a file breaks a rule."""

    exit_code = 4


class DataError(InputError):
    """A data set breaks the canonical format; lists every problem at once."""

    @classmethod
    def listing(cls, code: str, what: str, problems: Sequence[str], hint: str = "") -> DataError:
        """Make one error of all ``problems`` found in ``what``."""
        if len(problems) == 1:
            return cls(code, f"{what}: {problems[0]}", hint)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        return cls(code, f"{what}: {len(problems)} problems:{lines}", hint)


class ModelError(InputError):
    """An unknown model, or one that the method cannot adapt."""


class FrameError(InputError):
    """A frame cannot be made: the rank or the kernel's spectrum forbids it."""


class MismatchError(InputError):
    """Two artifacts that do not belong together, e.g. a release of another base."""


class StorageError(FleetError):
    """A file could not be written, or was not whole when read back."""


class RoundError(FleetError):
    """A round or a run ended without its result."""


class TooFewDevices(RoundError):
    """The bounded wait for devices ran out."""

    exit_code = 3


class UnavailableError(FleetError):
    """This command needs an extra or a service that is absent."""

    exit_code = 4


class Interrupted(FleetError):
    """The user pressed Ctrl-C."""

    exit_code = 130

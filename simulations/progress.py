"""What a simulation reports while it runs; the command line draws it, tests collect it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives the steps of a simulation."""

    def stage(self, name: str, total: int, note: str = "") -> None:
        """Begin a stage of ``total`` steps; the one before is over."""
        ...

    def advance(self, note: str = "") -> None:
        """Take one step of the stage."""
        ...

    def say(self, text: str) -> None:
        """Tell something that stays on the screen."""
        ...


class Silent:
    """A progress that shows nothing."""

    def stage(self, name: str, total: int, note: str = "") -> None:
        """Show nothing."""

    def advance(self, note: str = "") -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

"""The progress of a simulation on a terminal: one bar per stage, on standard error.

Where standard error is no terminal (a log file, CI), each stage and note is a line instead.
"""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from server.control.cli.render import progress_console

__all__ = ["Display", "Speed"]


class Speed(ProgressColumn):
    """Steps per second; of a federated method a step is a device that answered."""

    def render(self, task: Task) -> Text:
        """Return the speed of late, nothing while it is unknown or below one."""
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed:.0f}/s" if speed >= 1 else "")


class Display:
    """Draws stages; a :class:`simulations.progress.Progress`.

    Args:
        visible: False shows nothing.
    """

    def __init__(self, *, visible: bool = True) -> None:
        self._console = progress_console()
        self._visible = visible
        self._live = visible and self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            Speed(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._live,
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int, note: str = "") -> None:
        """Begin a stage of ``total`` steps; the one before is over."""
        self._stage = self._bars.add_task(name, total=total, note=note)
        if self._visible and not self._live:
            self._console.print(f"{name}: {total} steps", highlight=False)

    def advance(self, note: str = "") -> None:
        """Take one step of the stage."""
        if self._stage is not None:
            self._bars.update(self._stage, advance=1, note=note)

    def say(self, text: str) -> None:
        """Tell something that stays on the screen."""
        if self._visible:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

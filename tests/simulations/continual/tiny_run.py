"""Small continual runs: a network that is trained once, and a progress that may end the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.continual.scenario import parse_scenario
from server.prepare import train_base
from simulations.continual.run import ScenarioRun
from simulations.continual.setting import setting_of
from simulations.progress import Silent

__all__ = ["Killed", "Notes", "tiny_run", "train_tiny_base"]


class Killed(Exception):
    pass


class Notes(Silent):
    """Keeps what it is told of periods, and ends the process, so to speak, after some of them.

    Args:
        stop_after: Periods; -1 for never.
    """

    def __init__(self, stop_after: int = -1) -> None:
        self.told: list[str] = []
        self.stop_after = stop_after

    def advance(self, note: str = "") -> None:
        if "period" in note:
            self.told.append(note)
        if len(self.told) == self.stop_after:
            raise Killed


def train_tiny_base(path: Path, text: str, data: Path, epochs: int) -> Path:
    """Train the network that runs of a scenario start from."""
    values = {"data": str(data), "rank": 2, "base_epochs": epochs, "shift": "none"}
    setting = setting_of(RunConfig.parse(values), parse_scenario(text, "test"))
    people = setting.population
    save_base(train_base(setting.config, people, people.source), path)
    return path


def tiny_run(
    folder: Path,
    text: str,
    data: Path,
    base: bytes,
    strategies: tuple[str, ...],
    values: dict[str, Any] | None = None,
    **named: Any,
) -> ScenarioRun:
    """Return a run in a folder that has its base already.

    Args:
        folder: Made where it is not there.
        text: The scenario.
        data: A data set's file.
        base: A base's file.
        strategies: Their names.
        values: Of the configuration, in place of the usual ones.
        named: The rest of ``ScenarioRun``.
    """
    folder.mkdir(exist_ok=True)
    if not (folder / "base.safetensors").exists():
        (folder / "base.safetensors").write_bytes(base)
    fields = {"data": str(data), "rank": 2, "batch": 8, "learning_rate": 0.05, "shift": "none"}
    config = RunConfig.parse({**fields, "out": str(folder), **(values or {})})
    return ScenarioRun(config, parse_scenario(text, "test"), strategies, **named)

"""From a configuration and a scenario to what a continual run starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fleet.adapt.base import Base, load_base, save_base
from fleet.config import RunConfig
from fleet.continual.scenario import Scenario
from fleet.continual.timeline import Timeline
from fleet.har.population import Population, population_of
from fleet.peft.registry import find
from server.prepare import normalisation_of, reframe, train_base
from simulations.continual.devices import Devices
from simulations.continual.driver import Continual
from simulations.continual.strategies import Strategy
from simulations.engines import Engine

__all__ = ["Setting", "setting_of"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all strategies of a run share.

    Args:
        config: The run; ``out`` is its folder.
        scenario: What happens.
        timeline: What the devices see of it.
        population: The people, with only the classes of the start.
    """

    config: RunConfig
    scenario: Scenario
    timeline: Timeline
    population: Population

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.config.out)

    def base(self, strategy: Strategy, on_epoch: Callable[[int, float], None] | None) -> Base:
        """Return the base that a strategy starts from, trained when it is first asked for.

        Strategies differ in its frames only: the network is one.
        """
        path = self.folder / "base.safetensors"
        if not path.exists():
            source = self.population.source
            save_base(train_base(self.config, self.population, source, on_epoch=on_epoch), path)
        base = load_base(path)
        kind = strategy.frame or self.config.frame
        return reframe(base, self.population, kind, self.config.rank, seed=self.config.seed)

    def continual(
        self,
        strategy: Strategy,
        base: Base,
        *,
        rate: float = 0.0,
        engine: Engine = Engine.cohort,
        workers: int = 0,
    ) -> Continual:
        """Return one strategy's run.

        Args:
            strategy: The strategy.
            base: What :meth:`base` returned.
            rate: Learning rate; 0 for the configuration's, or the method's own.
            engine: What trains.
            workers: Threads.
        """
        devices = Devices(self.timeline, normalisation_of(base), strategy.options, self.config.seed)
        rate = rate or self.config.learning_rate
        if not rate:
            rate = find(strategy.method or "core").default_rate
        folder = self.folder / strategy.name
        return Continual(folder, self.config, strategy, devices, base, rate, engine, workers)


def setting_of(config: RunConfig, scenario: Scenario) -> Setting:
    """Return the setting of a run.

    Args:
        config: Its ``shift``, ``devices`` and ``rounds`` are the scenario's affair.
        scenario: What happens.

    Raises:
        InputError: ``scenario-classes``; ``unknown-data``.
        DataError: When a shift does not suit the channels.
    """
    plain = config.model_copy(update={"shift": "none", "devices": 0, "variation": "none"})
    people = population_of(plain)
    timeline = Timeline(scenario, people, seed=config.seed, train_fraction=config.train_fraction)
    known = replace(people, dataset=timeline.source_dataset())
    return Setting(config, scenario, timeline, known)

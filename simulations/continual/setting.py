"""From a configuration and a scenario to what a continual run starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from clients.agent.watching import reference_of
from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.network import folded_network
from fleet.config import RunConfig
from fleet.continual.scenario import Scenario
from fleet.continual.timeline import Timeline
from fleet.har.population import Population, population_of, windows_of
from fleet.peft.registry import find
from server.prepare import normalisation_of, reframe, renewed_frames, train_base
from simulations.continual.devices import Devices, Eye
from simulations.continual.driver import Continual
from simulations.continual.private import Together
from simulations.continual.strategies import Strategy
from simulations.engines import Engine

__all__ = ["Setting", "setting_of"]

# More source windows would not move the reference of drift detectors visibly.
REFERENCE_WINDOWS = 3000


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
        eye = self._eye(base) if strategy.options.watches else None
        seed, options = self.config.seed, strategy.options
        devices = Devices(self.timeline, normalisation_of(base), options, seed, eye)
        rate = rate or self.config.learning_rate
        if not rate:
            rate = find(strategy.method or "core").default_rate
        folder = self.folder / strategy.name
        devices.probing = strategy.gate is not None and strategy.shares
        if engine is Engine.cohort:
            devices.private = Together()

        def renew(moved: Base) -> Base:
            return renewed_frames(moved, self.population, seed=self.config.seed)

        return Continual(folder, self.config, strategy, devices, base, rate, engine, workers, renew)

    def _eye(self, base: Base) -> Eye:
        """Return what drift detectors look with."""
        network = folded_network(base)
        source = windows_of(self.population, self.population.source, normalisation_of(base))
        step = -(-len(source.y) // REFERENCE_WINDOWS)
        return Eye(network, reference_of(network, source.x[::step]))


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

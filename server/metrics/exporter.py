"""Reads the registry for each question: a Prometheus collector, and verdicts with reasons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fleet.errors import FleetError, StorageError
from server.metrics.records import Tally
from server.metrics.samples import samples, unreadable
from server.metrics.snapshot import read
from server.registry import Registry
from server.registry.observations import Heartbeat

__all__ = ["AHEAD_S", "SILENT_S", "WAIT_S", "Exporter", "Verdict", "judged"]

SILENT_S = 60.0
"""Longest silence of a service that is ready; it says every five seconds that it lives."""
AHEAD_S = 5.0
"""How far in the future a sign of life may lie: clocks of two machines differ a little."""
WAIT_S = 10.0
"""How long a question waits for another one that reads the registry."""


@dataclass(frozen=True)
class Verdict:
    """Whether something is well, and if not, why.

    Args:
        reasons: Code, sentence and next step of each thing that is wrong.
    """

    reasons: tuple[tuple[str, str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons


def judged(beat: Heartbeat | None, now: float) -> Verdict:
    """Tell whether the standing service is ready.

    >>> judged(None, 0.0).reasons[0][0]
    'service-never-ran'

    Args:
        beat: Its last sign of life; None where there never was one.
        now: Seconds since the epoch.
    """
    if beat is None:
        text = "the standing service has never said that it lives"
        return Verdict((("service-never-ran", text, "See: fleet server status"),))
    age = now - beat.alive_at_s
    if age > SILENT_S:
        text = f"the standing service said {age:.0f} s ago that it lives, at most {SILENT_S:.0f} s"
        hint = "See: fleet server status, and log/keeper.log in the server's folder"
        return Verdict((("service-silent", text + " are allowed", hint),))
    if age < -AHEAD_S:
        text = f"the standing service's last sign of life is {-age:.0f} s in the future"
        return Verdict((("clock-behind", text, "A clock was set back; turn NTP on."),))
    return Verdict()


class Exporter(Collector):
    """What is served of one registry; any number of threads may ask, one reads at a time.

    Args:
        registry: Which.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry, self._clock = registry, clock
        self._one = threading.Lock()
        self._before = Tally()
        self._own = CollectorRegistry(auto_describe=False)
        self._own.register(self)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on the registry."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the registry once; of one that cannot be read that alone is said."""
        try:
            with self._alone():
                found = read(self._registry, self._before)
                self._before = found.closed
        except FleetError:
            yield from unreadable()
            return
        yield from samples(found, self._clock())

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._own)

    def health(self) -> Verdict:
        """Tell whether this process can read the registry."""
        try:
            with self._alone():
                self._registry.audit.head()
        except FleetError as error:
            return _failed(error)
        return Verdict()

    def readiness(self) -> Verdict:
        """Tell whether the standing service does its work."""
        try:
            with self._alone():
                beat = self._registry.observations.heartbeat()
        except FleetError as error:
            return _failed(error)
        return judged(beat, self._clock())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for the others, and refuse a file that is gone though SQLite still has it open.

        Raises:
            StorageError: ``registry-busy`` or ``registry-gone``.
        """
        if not self._one.acquire(timeout=WAIT_S):
            raise self._registry.database.error("registry-busy", "")
        try:
            path = self._registry.database.path
            if path is not None and not path.exists():
                raise StorageError(
                    "registry-gone",
                    f"there is no {path} any more",
                    "Put the last backup back, then start the server again.",
                )
            yield
        finally:
            self._one.release()


def _failed(error: FleetError) -> Verdict:
    return Verdict(((error.code, error.message, error.hint),))

"""The folder of a continual run: each period whole or not at all.

    DIR/base-00/base.safetensors          the base, and one for each that followed it
    DIR/base-00/{releases,rounds}/…       releases and rounds, see ``server.store``
    DIR/periods/000003.json               what period 3 came to
    DIR/devices/000003.safetensors        what the devices remember after it; the last one only

A period counts once its record is there, so a run that was killed goes on from its last whole one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.agent.continual import DeviceMemory, Labelled
from fleet.adapt.digest import digest_arrays
from fleet.adapt.state import CoreState
from fleet.continual.calibration import Calibration
from fleet.continual.replay import Replay
from fleet.errors import StorageError
from fleet.files import write_bytes, write_json
from server.store import read_json

__all__ = ["Arrays", "ContinualFolder", "memory_arrays", "memory_of"]

Arrays = Mapping[str, NDArray[Any]]


class ContinualFolder:
    """Keeps a run's periods and what its devices remember.

    Args:
        folder: Where; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def periods(self) -> list[dict[str, Any]]:
        """Return the records of all whole periods, in order."""
        paths = sorted((self.folder / "periods").glob("[0-9]*.json"))
        return [read_json(path) for path in paths]

    def keep(
        self, period: int, record: Mapping[str, Any], memories: Mapping[int, DeviceMemory]
    ) -> None:
        """Keep a period: what devices remember first, then the record that makes it count."""
        arrays: dict[str, NDArray[Any]] = {}
        flags: dict[str, Any] = {}
        for number, memory in memories.items():
            own, flag = memory_arrays(memory)
            arrays |= {f"{number}/{name}": array for name, array in own.items()}
            flags[str(number)] = flag
        write_bytes(self._devices(period), save({n: arrays[n] for n in sorted(arrays)}))
        content = {**record, "devices_digest": digest_arrays(arrays), "memories": flags}
        write_json(self.folder / "periods" / f"{period:06d}.json", content)
        for path in self._devices(0).parent.glob("[0-9]*.safetensors"):
            if int(path.stem) < period:
                path.unlink(missing_ok=True)

    def memories(self, record: Mapping[str, Any]) -> dict[int, DeviceMemory]:
        """Return what the devices remembered after a period.

        Raises:
            StorageError: ``memories-damaged``.
        """
        path = self._devices(int(record["period"]))
        try:
            arrays = load(path.read_bytes())
            if digest_arrays(arrays) != record["devices_digest"]:
                raise ValueError("its content is not what the period's record names")
            return {
                int(number): memory_of(
                    {
                        name.partition("/")[2]: array
                        for name, array in arrays.items()
                        if name.partition("/")[0] == number
                    },
                    flag,
                )
                for number, flag in record["memories"].items()
            }
        except (OSError, SafetensorError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise StorageError(
                "memories-damaged", f"{path} cannot be read: {error}", "Start a new run."
            ) from error

    def _devices(self, period: int) -> Path:
        return self.folder / "devices" / f"{period:06d}.safetensors"


def memory_arrays(memory: DeviceMemory) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return a memory as arrays and what is left of it as JSON."""
    arrays: dict[str, NDArray[Any]] = {}
    for kind, state in (("personal", memory.personal), ("fisher", memory.fisher)):
        if state is not None:
            arrays |= {f"{kind}:{name}": np.array(a) for name, a in state.arrays.items()}
    if memory.calibration is not None:
        own = memory.calibration.arrays()
        arrays |= {f"calibration:{name}": array for name, array in own.items()}
    if memory.probe is not None:
        probe: Arrays = {"x": memory.probe.x, "y": memory.probe.y, "ids": memory.probe.ids}
        arrays |= {f"probe:{name}": array for name, array in probe.items()}
    arrays |= {f"replay:{name}": array for name, array in memory.replay.arrays().items()}
    flags = {
        "personal_serves": memory.personal_serves,
        "detector": memory.detector,
        "alarms": list(memory.alarms),
    }
    return arrays, flags


def memory_of(arrays: Arrays, flags: Mapping[str, Any]) -> DeviceMemory:
    """Return what :func:`memory_arrays` was called on.

    Raises:
        ValueError: When arrays or flags are not of a memory.
        KeyError: Likewise.
    """
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        kind, _, own = name.partition(":")
        parts.setdefault(kind, {})[own] = array
    states = {
        kind: CoreState.of(parts[kind]) if kind in parts else None
        for kind in ("personal", "fisher")
    }
    statistics, probe = parts.get("calibration"), parts.get("probe")
    return DeviceMemory(
        Replay.of_arrays(parts.get("replay", {})),
        states["personal"],
        bool(flags["personal_serves"]),
        states["fisher"],
        None if statistics is None else Calibration.of_arrays(statistics),
        flags["detector"],
        tuple(flags["alarms"]),
        None if probe is None else Labelled(probe["x"], probe["y"], probe["ids"]),
    )

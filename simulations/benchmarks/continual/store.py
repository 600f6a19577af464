"""The folder of a bench: one file per base, rehearsal, rate and cell, each whole or not there.

DIR/bench.json                data sets, machine, versions
DIR/bases/KEY.safetensors     networks, each shared by all strategies of its people and classes
DIR/rehearsals/KEY-RATE.json  what a strategy came to at one rate
DIR/rates/KEY.json            the rate of a strategy on a data set
DIR/cells/KEY.json            what a cell came to
DIR/runs/KEY-RATE/            the run of a cell while it lasts; with --keep for good
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.errors import InputError, StorageError
from fleet.files import write_json
from simulations.benchmarks.continual.grid import Cell
from simulations.versions import machine, versions

__all__ = ["FORMAT", "Store"]

FORMAT = "corefleet.bench-continual.1"


class Store:
    """Finds, reads and writes what a bench keeps.

    Args:
        folder: Where; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self, key: str) -> Path:
        """Return the path of a network."""
        return self.folder / "bases" / f"{key}.safetensors"

    def base_time(self, key: str) -> Path:
        """Return the path of the CPU seconds that a network took."""
        return self.folder / "bases" / f"{key}.json"

    def rehearsal(self, cell: Cell, rate: float) -> Path:
        """Return the path of a rehearsal's record."""
        return self.folder / "rehearsals" / f"{cell.key}-{rate:g}.json"

    def rate(self, key: str) -> Path:
        """Return the path of a sweep's record."""
        return self.folder / "rates" / f"{key}.json"

    def cell(self, cell: Cell) -> Path:
        """Return the path of a cell's record."""
        return self.folder / "cells" / f"{cell.key}.json"

    def run(self, cell: Cell, rate: float) -> Path:
        """Return the folder of a cell's run."""
        return self.folder / "runs" / f"{cell.key}-{rate:g}"

    def read(self, path: Path) -> dict[str, Any]:
        """Read a record.

        Raises:
            StorageError: ``bench-folder`` when the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise StorageError(
                "bench-folder", f"{path} is damaged: {error}", "Delete it; it is made again."
            ) from error
        return content

    def claim(self, data: Mapping[str, str]) -> None:
        """Write what results depend on, or refuse a folder whose results depend on other data.

        Args:
            data: Digests of data sets by name.

        Raises:
            InputError: ``bench-folder``.
        """
        known = self.checked(data)
        content = {"format": FORMAT, "data": known, "machine": machine(), "versions": versions()}
        write_json(self.folder / "bench.json", content)

    def checked(self, data: Mapping[str, str]) -> dict[str, str]:
        """Return the digests of all data sets that the folder's results are of.

        Raises:
            InputError: ``bench-folder``.
        """
        path = self.folder / "bench.json"
        if not path.is_file():
            return dict(data)
        before = self.read(path)
        known: dict[str, str] = before.get("data", {})
        wrong = ["format"] if before.get("format") != FORMAT else []
        wrong += [name for name in data if known.get(name, data[name]) != data[name]]
        if wrong:
            raise InputError(
                "bench-folder",
                f"{self.folder} holds results of another {', '.join(wrong)}; "
                "they cannot be compared",
                "Give another --out.",
            )
        return known | dict(data)

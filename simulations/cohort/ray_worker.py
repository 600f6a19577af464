"""What a Ray worker is: a process of one CPU that answers for chunks of devices.

It finds base and data on its own: by path where a node sees the same files as the driver, the base
else from the cluster's object store, a data set else by its name in the node's ``FLEET_DATA``.
What is found is compared by digest, so that no node trains on something else unnoticed.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch

from fleet.adapt.attach import single_thread
from fleet.config import RunConfig
from fleet.errors import DataError, FleetError, StorageError
from fleet.federate.wire import Payload
from fleet.files import write_bytes
from fleet.har.sources import BUILT_IN, ENVIRONMENT, folders
from simulations.cohort.fleet import LearnerFleet, RunConfigValues
from simulations.cohort.packed import Plain, pack, unpack
from simulations.cohort.worker import ChunkWorker
from simulations.placed import placed

__all__ = ["ChunkActor", "Kind", "Setting", "setting_of", "software"]

Kind = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Setting:
    """What every worker of a run is told once.

    Args:
        run_config: The run's configuration in Flower's spelling; ``data`` is never empty.
        base_digest: SHA-256 of the base's file, hexadecimal.
        data_digest: Of the data set's files, see :func:`_digest_of_data`; empty for one that is
            generated.
    """

    run_config: dict[str, bool | int | float | str]
    base_digest: str
    data_digest: str


def setting_of(run_config: RunConfigValues) -> tuple[Setting, bytes]:
    """Return what workers are told, and the bytes of the base.

    Raises:
        DataError: ``data-unknown`` when the driver itself has no such data.
        StorageError: ``base-missing`` when there is no base.
    """
    config = placed(RunConfig.parse(run_config))
    try:
        content = Path(config.base).read_bytes()
    except OSError as error:
        text = f"{config.base} cannot be read ({error.strerror})"
        raise StorageError("base-missing", text) from error
    data = "" if config.data in BUILT_IN else _digest_of_data(Path(config.data))
    return Setting(config.for_flower(), hashlib.sha256(content).hexdigest(), data), content


def software() -> dict[str, str]:
    """Return the versions that must be the same everywhere, by name."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "PyTorch": torch.__version__, "numpy": np.__version__}


class ChunkActor:
    """Answers for chunks of devices in a process of its own, on one thread.

    Args:
        setting: See :class:`Setting`.
        base: A list of the reference to the base's bytes, which are fetched only where needed.
    """

    def __init__(self, setting: Setting, base: Sequence[ray.ObjectRef[bytes]]) -> None:
        torch.set_num_threads(1)
        self._setting = setting
        self._base = base
        self._worker: ChunkWorker | None = None
        self._message: tuple[int, Payload] | None = None

    def prepare(self) -> dict[str, Any]:
        """Find base and data.

        Returns:
            ``node``, ``node_id``, ``software`` and, packed, ``error`` when something is missing.
        """
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        told: dict[str, Any] = {
            "node": address,
            "node_id": ray.get_runtime_context().get_node_id(),
            "software": software(),
        }
        try:
            self._worker = ChunkWorker(self._learners())
        except FleetError as error:
            told["error"] = pack(error)
        return told

    def answer(
        self,
        kind: Kind,
        number: int,
        message: Sequence[ray.ObjectRef[Plain]],
        partitions: list[int],
    ) -> list[Plain] | Plain:
        """Answer a message for a chunk.

        Args:
            kind: What is asked.
            number: Differs between messages, so that each is fetched and opened once.
            message: A list of the reference to the packed message.
            partitions: The chunk.

        Returns:
            A packed answer for each device, or one packed error for all.
        """
        assert self._worker is not None
        try:
            if self._message is None or self._message[0] != number:
                payload = unpack(ray.get(message[0]))
                assert isinstance(payload, Payload)
                self._message = (number, payload)
            with single_thread():
                answers = getattr(self._worker, kind)(self._message[1], partitions)
        except Exception as error:
            return pack(error)
        return [pack(each) for each in answers]

    def _learners(self) -> LearnerFleet:
        setting = self._setting
        values = {**setting.run_config, **_data_here(setting)}
        base = Path(str(values["base"]))
        if base.is_file() and _sha256(base) == setting.base_digest:
            return _warm(values)
        content = ray.get(self._base[0])
        if hashlib.sha256(content).hexdigest() != setting.base_digest:
            raise StorageError("base-damaged", "the base did not arrive as it was sent")
        # Once loaded it is held in memory, so nothing has to be left behind on the node.
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            path = Path(folder) / "base.safetensors"
            write_bytes(path, content)
            return _warm({**values, "base": str(path)})


def _warm(values: RunConfigValues) -> LearnerFleet:
    """Return the devices of a run after base and data were read."""
    learners = LearnerFleet(values)
    learners.status(0)
    return learners


def _data_here(setting: Setting) -> Mapping[str, str]:
    """Return the data set's place on this node."""
    if not setting.data_digest:
        return {}
    asked = Path(str(setting.run_config["data"]))
    places = [asked, *(folder / asked.name for folder in folders())]
    found = [path for path in places if path.is_file()]
    for path in found:
        if _digest_of_data(path) == setting.data_digest:
            return {"data": str(path)}
    hint = f"Copy it to that node with its .json, into a folder of {ENVIRONMENT} there."
    if found:
        text = f"{found[0]} is another data set than the driver's {asked}"
        raise DataError("data-differs", text, hint)
    raise DataError(
        "data-missing", f"there is neither {asked} nor a {asked.name} in {ENVIRONMENT}", hint
    )


def _digest_of_data(path: Path) -> str:
    """Return the SHA-256 of a data set's two files, hexadecimal."""
    return "".join(_sha256(each) for each in (path, path.with_suffix(".json")))


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError("unreadable", f"{path} cannot be read ({error.strerror})") from error

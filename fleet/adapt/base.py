"""Base: the immutable bundle that a fleet starts from, named by its digest.

It holds the raw network with its batch norms, the frames of its folded kernels, the class names,
the channels and the normalisation that source people gave. On disk it is one safetensors file whose
header carries the record as JSON; nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fleet.adapt.digest import canonical_json, digest_arrays, digest_json, little_endian
from fleet.adapt.frames import Frame, FrameKind
from fleet.errors import MismatchError, StorageError
from fleet.files import write_bytes
from fleet.models.config import ModelConfig

__all__ = [
    "Base",
    "BaseRecord",
    "base_of_bytes",
    "bytes_of_base",
    "load_base",
    "read_bundle",
    "save_base",
    "write_bundle",
]

FORMAT = "corefleet.base.1"
_FRAME = "frame:"
_WEIGHT = "weight:"


class BaseRecord(BaseModel):
    """What a base says of itself beside its arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    labels: tuple[str, ...] = Field(min_length=2)
    channels: tuple[tuple[str, str], ...] = Field(min_length=1)  # (name, unit)
    rate_hz: float = Field(gt=0)
    window: int = Field(ge=1)
    stride: int = Field(ge=1)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_on: str = ""  # what made it, for people: data set, source people, epochs
    frame_kind: FrameKind = "svd"
    rank: int = Field(ge=1)  # the largest of the frames', where layers differ

    @model_validator(mode="after")
    def _sizes_agree(self) -> BaseRecord:
        sizes = {
            "channels": (len(self.channels), self.model.channels),
            "mean": (len(self.mean), self.model.channels),
            "std": (len(self.std), self.model.channels),
            "labels": (len(self.labels), self.model.classes),
            "window": (self.window, self.model.window),
        }
        wrong = [f"{n}: {a}, the model has {b}" for n, (a, b) in sizes.items() if a != b]
        if not all(s > 0 for s in self.std):
            wrong.append("std: not positive")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@dataclass(frozen=True, eq=False)
class Base:
    """A base in memory.

    Args:
        record: Names, sizes, normalisation.
        arrays: Raw state of the network (weights, batch norms' statistics) by name.
        frames: Frame by layer name.
    """

    record: BaseRecord
    arrays: Mapping[str, NDArray[Any]]
    frames: Mapping[str, Frame]

    @cached_property
    def frame_digest(self) -> str:
        """Digest of all frames by layer name; part of every update."""
        return digest_json({name: frame.digest for name, frame in self.frames.items()})

    @cached_property
    def digest(self) -> str:
        """The base's name: digest of the record, the arrays and the frames."""
        header = [FORMAT, self.record.model_dump(mode="json"), self.frame_digest]
        return digest_arrays(self.arrays, header)


def save_base(base: Base, path: Path) -> None:
    """Write a base durably to one safetensors file."""
    write_bytes(path, bytes_of_base(base))


def bytes_of_base(base: Base) -> bytes:
    """Return what :func:`save_base` writes; the same bytes for the same base, on every machine."""
    tensors = {_WEIGHT + name: array for name, array in base.arrays.items()}
    tensors |= {_FRAME + name: frame.array for name, frame in base.frames.items()}
    frames = {n: [f.kind, f.rank, f.groups] for n, f in sorted(base.frames.items())}
    record = {
        "format": FORMAT,
        "digest": base.digest,
        "record": base.record.model_dump(mode="json"),
        "frames": frames,
    }
    return _packed(tensors, record)


def load_base(path: Path) -> Base:
    """Read a base and check that its content has the digest that it carries.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-damaged`` or ``base-damaged``.
        MismatchError: ``bundle-format`` when the file is whole but no base.
    """
    return _base_of(*read_bundle(path, FORMAT), str(path))


def base_of_bytes(content: bytes, name: str) -> Base:
    """Read the content of a base's file, wherever it came from.

    Args:
        content: What :func:`bytes_of_base` returned.
        name: What errors call it.

    Raises:
        StorageError: ``bundle-damaged`` or ``base-damaged``.
        MismatchError: ``bundle-format``.
    """
    return _base_of(*_unpacked(content, FORMAT, name), name)


def _base_of(tensors: Mapping[str, NDArray[Any]], record: dict[str, Any], name: str) -> Base:
    try:
        frames = {
            layer: _frame(tensors, layer, kind, rank, groups)
            for layer, (kind, rank, groups) in record["frames"].items()
        }
        base = Base(
            BaseRecord.model_validate(record["record"]),
            MappingProxyType(
                {n.removeprefix(_WEIGHT): a for n, a in tensors.items() if n.startswith(_WEIGHT)}
            ),
            MappingProxyType(frames),
        )
        digest = base.digest
    except (AttributeError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise StorageError(
            "base-damaged", f"{name} is no whole base: {error}", "Copy or train it again."
        ) from error
    if digest != record.get("digest"):
        raise StorageError(
            "base-damaged",
            f"{name} carries digest {str(record.get('digest'))[:12]}…, its content has "
            f"{digest[:12]}…",
            "The file was changed or cut; copy or train it again.",
        )
    return base


def _frame(
    tensors: Mapping[str, NDArray[Any]], layer: str, kind: Any, rank: Any, groups: Any
) -> Frame:
    """Return a layer's frame, if its arrays are as large as it says.

    Whoever computes with a frame makes room for what it says, and nobody may have vouched for it.
    """
    array, kernel = tensors[_FRAME + layer], tensors.get(f"{_WEIGHT}{layer}.weight")
    axis = 1 if kind == "svd" else 0
    if type(rank) is not int or array.ndim <= axis or array.shape[axis] != rank:
        raise ValueError(f"the frame of {layer} says rank {rank!r}, its array is {array.shape}")
    most = len(array) if kind == "svd" else 1 if kernel is None else len(kernel)
    if type(groups) is not int or not 1 <= groups <= most:
        raise ValueError(f"the frame of {layer} says {groups!r} groups of at most {most}")
    return Frame(kind, rank, groups, array)


def write_bundle(path: Path, tensors: Mapping[str, NDArray[Any]], record: Any) -> None:
    """Write named tensors with a JSON record in the header, durably and canonically."""
    write_bytes(path, _packed(tensors, record))


def _packed(tensors: Mapping[str, NDArray[Any]], record: Any) -> bytes:
    contiguous = {name: little_endian(tensors[name]) for name in sorted(tensors)}
    return save_tensors(contiguous, metadata={"corefleet": canonical_json(record).decode()})


def read_bundle(path: Path, wanted: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`write_bundle` wrote.

    Args:
        path: The file.
        wanted: The record's ``format``, e.g. ``corefleet.base.1``.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-unreadable`` or ``bundle-damaged``.
        MismatchError: ``bundle-format`` when the file is whole but something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StorageError("bundle-missing", f"there is no file {path}", "") from error
    except OSError as error:
        raise StorageError("bundle-unreadable", f"{path}: {error.strerror}", "") from error
    return _unpacked(content, wanted, str(path))


def _unpacked(
    content: bytes, wanted: str, name: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        tensors = load_tensors(content)
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        record = json.loads(header.get("__metadata__", {}).get("corefleet", "{}"))
        if not isinstance(record, dict):
            raise ValueError("its record is no JSON object")
    except (SafetensorError, struct.error, ValueError) as error:
        raise StorageError(
            "bundle-damaged",
            f"{name} is no whole safetensors file ({error})",
            "It was cut or changed; copy or make it again.",
        ) from error
    if record.get("format") != wanted:
        raise MismatchError(
            "bundle-format",
            f"{name} holds {record.get('format', 'no Corefleet record')!s}; "
            f"this command needs {wanted}",
            "",
        )
    return tensors, record

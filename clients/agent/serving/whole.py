"""Whole models: merged kernels written to a file, and read back with everything checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from clients.agent.serving.folder import CURRENT, LAST_GOOD, ModelFolder
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.records import Pointer
from clients.agent.serving.skeleton import direct, folded_skeleton
from fleet.adapt.base import Base, BaseRecord, load_base, read_bundle, write_bundle
from fleet.adapt.digest import digest_arrays
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.errors import FleetError, MismatchError, StorageError
from fleet.federate.served import FORMAT

__all__ = ["Found", "Whole", "open_best", "open_served", "pointer_to", "save_served", "whole_base"]


@dataclass(frozen=True, eq=False)
class Whole:
    """A model that can be served: read completely, verified, and run once.

    Args:
        pointer: What it is.
        network: Dense network in evaluation mode; takes normalised windows
            ``(n, channels, window)`` float32, returns logits ``(n, classes)``.
        about: Classes, channels, window and normalisation.
    """

    pointer: Pointer
    network: nn.Module
    about: BaseRecord


@dataclass(frozen=True, eq=False)
class Found:
    """What :func:`open_best` found.

    Args:
        whole: The model.
        source: Which file it came from.
        problems: What was wrong with those before it.
    """

    whole: Whole
    source: Literal["current", "last-good", "base"]
    problems: tuple[str, ...]


def pointer_to(release: KeptRelease, parameters: Mapping[str, NDArray[Any]]) -> Pointer:
    """Return the pointer to a release's merged parameters."""
    return Pointer(
        number=release.number,
        state=release.state.digest,
        digest=digest_arrays(parameters),
        release=release.published,
    )


def save_served(
    base: Base, pointer: Pointer, parameters: Mapping[str, NDArray[Any]], path: Path
) -> None:
    """Write merged parameters durably, as :func:`fleet.federate.served.load_merged` reads them.

    Raises:
        StorageError: See :func:`fleet.files.atomic_path`.
    """
    record = {
        "format": FORMAT,
        "digest": pointer.digest,
        "base": base.digest,
        "release": [pointer.number, pointer.release],
        "state": pointer.state,
        "record": base.record.model_dump(mode="json"),
    }
    write_bundle(path, parameters, record)


def open_served(path: Path, pointer: Pointer) -> Whole:
    """Read merged kernels and check all that can be checked without windows.

    The digest over what was read is the pointer's, every entry is finite, the architecture takes
    the parameters, and the network answers a window of zeros with finite logits.

    Raises:
        StorageError: ``bundle-missing``, ``bundle-unreadable``, ``bundle-damaged`` or
            ``served-damaged``.
        MismatchError: ``bundle-format``, ``parameter-names``, ``parameter-shape`` or
            ``served-not-finite``.
        ModelError: ``unknown-model``.
    """
    parameters, record = read_bundle(path, FORMAT)
    found = digest_arrays(parameters)
    if found != pointer.digest or record.get("state") != pointer.state:
        raise StorageError(
            "served-damaged",
            f"{path} holds kernels {found[:12]}…, {pointer.digest[:12]}… was to be served",
            "The file was changed; the agent merges it again from the base.",
        )
    try:
        about = BaseRecord.model_validate(record.get("record"))
    except ValidationError as error:
        raise StorageError("served-damaged", f"{path} has no whole record", "") from error
    check_finite(parameters, path.name)
    network = with_parameters(folded_skeleton(about.model), parameters)
    return _run_once(Whole(pointer, network, about))


def whole_base(base: Base) -> Whole:
    """Return the base's folded network itself, for when no file can be served."""
    network = direct(folded_network(base))
    return _run_once(
        Whole(pointer_to(KeptRelease.bare(base), parameters_of(network)), network, base.record)
    )


def open_best(folder: ModelFolder) -> Found:
    """Open what ``current`` names, else ``last-good``, else the base in memory; writes nothing.

    Raises:
        StorageError: ``nothing-to-serve`` when not even the base is whole.
    """
    problems: list[str] = []
    wanted: tuple[tuple[Literal["current", "last-good"], str], ...] = (
        ("current", CURRENT),
        ("last-good", LAST_GOOD),
    )
    for source, which in wanted:
        try:
            pointer = folder.pointer(which)
            if pointer is not None:
                whole = open_served(folder.served_file(pointer.name), pointer)
                return Found(whole, source, tuple(problems))
        except FleetError as error:
            problems.append(f"{which}: {error.message}")
    try:
        return Found(whole_base(load_base(folder.base)), "base", tuple(problems))
    except FleetError as error:
        problems.append(f"base: {error.message}")
    raise StorageError(
        "nothing-to-serve",
        f"{folder.path} holds no whole model: {'; '.join(problems)}",
        "Install the fleet's base again: fleet-device init --base FILE",
    )


def check_finite(parameters: Mapping[str, NDArray[Any]], what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        MismatchError: ``served-not-finite``.
    """
    wrong = [name for name, array in parameters.items() if not np.isfinite(array).all()]
    if wrong:
        raise MismatchError(
            "served-not-finite", f"{what} has NaN or infinity in {', '.join(sorted(wrong)[:5])}"
        )


def _run_once(whole: Whole) -> Whole:
    model = whole.about.model
    with torch.inference_mode():
        logits = whole.network(torch.zeros(1, model.channels, model.window))
    if not bool(torch.isfinite(logits).all()):
        raise MismatchError(
            "served-not-finite",
            f"{whole.pointer.name} answers a window of zeros with {logits.tolist()[0][:3]}",
        )
    return whole

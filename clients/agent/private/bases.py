"""The base that a private core was learned on, kept until the core was taken to the next one.

It is a second name of the base's file: ``STATE/model/own/base/DIGEST.safetensors``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from clients.agent.serving.folder import ModelFolder
from fleet.adapt.base import Base, load_base, save_base
from fleet.errors import FleetError, StorageError

__all__ = ["base_before", "keep_base", "sweep_bases"]

DIGITS = 16


def keep_base(folder: ModelFolder, base: Base) -> None:
    """Keep the base that the device has now.

    Raises:
        StorageError: When it could not be kept.
    """
    path = _file(folder, base.digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            try:
                os.link(_held(folder, base.digest), path)
            except OSError:  # a file system without links
                save_base(base, path)
    except OSError as error:
        raise StorageError(
            "base-not-kept", f"{path} could not be written: {error.strerror}", ""
        ) from error


def sweep_bases(folder: ModelFolder, digest: str) -> None:
    """Remove every other base, once no private core needs it."""
    path = _file(folder, digest)
    with suppress(OSError):  # what stays is removed the next time
        for other in path.parent.glob("*"):
            if other != path:
                other.unlink(missing_ok=True)


def base_before(folder: ModelFolder, digest: str) -> Base | None:
    """Return the base of a digest that :func:`keep_base` kept; None when none is whole."""
    with suppress(FleetError):
        base = load_base(_file(folder, digest))
        return base if base.digest == digest else None
    return None


def _held(folder: ModelFolder, digest: str) -> Path:
    later = folder.base_file(digest)
    return later if later.exists() else folder.base


def _file(folder: ModelFolder, digest: str) -> Path:
    return folder.own / "base" / f"{digest[:DIGITS]}.safetensors"

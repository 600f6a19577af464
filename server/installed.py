"""What an installed base is: the bytes or the file that a registry keeps, read and checked."""

from __future__ import annotations

from pathlib import Path

from fleet.adapt.base import Base, base_of_bytes, load_base
from fleet.errors import StorageError

__all__ = ["base_in", "bundle_of"]


def base_in(content: bytes | Path) -> Base:
    """Read a base and check that its content has the digest that it carries.

    Args:
        content: Its bundle's bytes, or the file that holds them.

    Raises:
        StorageError: See :func:`fleet.adapt.base.load_base`.
        MismatchError: The same.
    """
    return load_base(content) if isinstance(content, Path) else base_of_bytes(content, "the file")


def bundle_of(content: bytes | Path) -> bytes:
    """Return the bytes of a base's file.

    Raises:
        StorageError: ``bundle-unreadable``.
    """
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise StorageError(
            "bundle-unreadable",
            f"the base's file {content} cannot be read ({error.strerror})",
            "Put it back, or install the base again: fleet base install FILE",
        ) from error

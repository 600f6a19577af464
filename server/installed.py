"""What an installed base is: the bytes or the file that a registry keeps, read and checked."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fleet.adapt.base import Base, load_base
from fleet.errors import MismatchError, StorageError

__all__ = ["base_in"]


def base_in(content: bytes | Path) -> Base:
    """Read a base and check that its content has the digest that it carries.

    Args:
        content: Its bundle's bytes, or the file that holds them.

    Raises:
        StorageError: See :func:`fleet.adapt.base.load_base`.
        MismatchError: The same.
    """
    if isinstance(content, Path):
        return load_base(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        path.write_bytes(content)
        try:
            return load_base(path)
        except (MismatchError, StorageError) as error:
            # A file that is gone by then is nothing to tell anybody of.
            told = error.message.replace(str(path), "the file")
            raise type(error)(error.code, told, error.hint) from error

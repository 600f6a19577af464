"""The backup's file: a plain tar, its manifest first.

    manifest.json     format, version, time, the end of the audit; digest and size of every file
    registry.sqlite   superlink.db   server.toml   ca.crt   release-key.pub
    release-key   server.crt   server.key   superexec-secret      only when keys are asked for
    ca.key                                            only when it is asked for by its own name

A reader takes no member's word: names, kinds, sizes and digests are those of the manifest, names
are of this module, nothing is unpickled, linked or written by a path from the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AUTHORITY",
    "AUTHORITY_KEY",
    "CONFIG",
    "FORMAT",
    "KEYS",
    "KIND",
    "LARGEST_FILE_BYTES",
    "MANIFEST",
    "NAMES",
    "NEW",
    "NODES_FILE",
    "PRIVATE",
    "REGISTRY_FILE",
    "RELEASE_PUBLIC",
    "Manifest",
    "Part",
    "blocks",
]

KIND = "corefleet.server-backup"
FORMAT = 1
MANIFEST, REGISTRY_FILE, NODES_FILE = "manifest.json", "registry.sqlite", "superlink.db"
CONFIG, AUTHORITY, RELEASE_PUBLIC = "server.toml", "ca.crt", "release-key.pub"
KEYS = ("release-key", "server.crt", "server.key", "superexec-secret")
AUTHORITY_KEY = "ca.key"
NAMES = (REGISTRY_FILE, NODES_FILE, CONFIG, AUTHORITY, RELEASE_PUBLIC, *KEYS, AUTHORITY_KEY)
LARGEST_FILE_BYTES = 2**40
"""Of one file in a backup."""
AT_ONCE_BYTES = 2**20
PRIVATE = 0o600
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
"""How a file is opened that must not be there yet."""


class Part(BaseModel):
    """One file.

    Args:
        sha256: Of its content.
        bytes: Its size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=LARGEST_FILE_BYTES)


class Manifest(BaseModel):
    """What a backup holds.

    Args:
        kind: Tells it from any other tar.
        format: Of this file; a reader of a lower one refuses it.
        version: Of the Corefleet that wrote it.
        made_at: When, ISO 8601, UTC.
        seq: Number of the audit's last row in it.
        hash: Its hash.
        files: By name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["corefleet.server-backup"] = "corefleet.server-backup"
    format: Literal[1] = 1
    version: str = Field(max_length=64)
    made_at: str = Field(max_length=64)
    seq: int = Field(ge=0)
    hash: str = Field(pattern="^[0-9a-f]{64}$")
    files: dict[Annotated[str, Field(pattern=f"^({'|'.join(map(re.escape, NAMES))})$")], Part]


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file piece by piece."""
    while block := file.read(AT_ONCE_BYTES):
        yield block

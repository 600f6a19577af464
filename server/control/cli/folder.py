"""The server's folder as the commands of its own machine take it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from server.service.folder import ServerFolder

__all__ = ["FolderOption", "folder_of", "now"]

FolderOption = Annotated[
    Path, typer.Option("--folder", envvar="COREFLEET_SERVER", help="Folder of the server.")
]


def folder_of(path: Path) -> ServerFolder:
    """Return the server's folder with an absolute path."""
    return ServerFolder(path.expanduser().absolute())


def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now().astimezone()

"""The options by which every command of a noun reaches its fleet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from server.control.reach import Reach

__all__ = ["reaching"]

_OPTIONS: dict[str, Any] = {
    "folder": Annotated[
        Path | None,
        typer.Option(
            "--folder", envvar="COREFLEET_SERVER", help="Folder of a server on this machine."
        ),
    ],
    "connect": Annotated[
        str, typer.Option("--connect", help="Control API of a server: HOST:PORT.")
    ],
    "certificate": Annotated[
        Path | None, typer.Option("--certificate", help="Your certificate, with --connect.")
    ],
    "key": Annotated[Path | None, typer.Option("--key", help="Its private key.")],
    "root": Annotated[
        Path | None, typer.Option("--root", help="Certificate of the server's authority.")
    ],
}
_DEFAULTS = {"connect": ""}
T = TypeVar("T")


def reaching(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of a :class:`Reach`, which it takes as ``reach``."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        each.replace(annotation=hints[name])
        for name, each in inspect.signature(command).parameters.items()
        if name != "reach"
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(f"reach_{name}", kind, default=_DEFAULTS.get(name), annotation=option)
        for name, option in _OPTIONS.items()
    ]

    @wraps(command)
    def wrapped(**values: Any) -> T:
        chosen = {name: values.pop(f"reach_{name}") for name in _OPTIONS}
        return command(reach=Reach(**chosen), **values)

    parameters = [each.replace(kind=kind) for each in own] + more
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped

"""Tables of a config file: frozen records whose keys are spelled in kebab-case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Table", "lines_of"]

LINE = 96


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A table of a config file: frozen, closed, validated once."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        alias_generator=_kebab,
    )


def lines_of(table: Table, path: str = "") -> Iterator[str]:
    """Yield a table as TOML, each key under its description; sub-tables come last.

    Args:
        table: The record.
        path: Dotted name of the table in the file; ``""`` for the top.
    """
    inner: list[tuple[str, Table]] = []
    if path:
        yield from ("", f"[{path}]")
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, Table):
            inner.append((f"{path}.{_kebab(name)}" if path else _kebab(name), value))
            continue
        yield from _comment(field.description or "")
        yield f"{_kebab(name)} = {_toml(value)}"
    for dotted, each in inner:
        yield from lines_of(each, dotted)


def _comment(text: str) -> Iterator[str]:
    line = "#"
    for word in text.split():
        if len(line) + 1 + len(word) > LINE:
            yield line
            line = "#"
        line += f" {word}"
    if line != "#":
        yield line


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string but for U+007F and pairs of surrogates: none is made here.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return "{ " + pairs + " }" if pairs else "{}"
    return repr(value)

"""Answers as tables for people: the same few rules for every noun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["draw", "lines", "quiet", "room", "table", "told", "word"]

NONE = "-"
# Off a terminal nothing is folded: a script that reads tables finds each row in one line.
WIDE = 10_000
DIGEST_SHOWN = 16
ALIVE = "alive"


def word(value: Any, name: str = "") -> str:
    """Return one value as a cell: times in UTC, yes and no, digests cut, ``-`` for none."""
    if value is None or value == "" or value == []:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return word(value.get("at"), "at") if "at" in value else str(dict(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, str) and (name.endswith("at") or name == "closed") and value[-1:] == "Z":
        return value[:-1].replace("T", " ")
    if name in ("digest", "hash", "parent", "base") and isinstance(value, str):
        return value[:DIGEST_SHOWN]
    return f"{value:.5f}" if isinstance(value, float) else str(value)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Return rows as a table; a column is a key, with ``=Title`` after it where it has another."""
    made = Table()
    for column in columns:
        made.add_column(column.split("=")[-1].replace("_", " "), overflow="fold")
    for row in rows:
        made.add_row(*(_escaped(row, column.split("=")[0]) for column in columns))
    return made


def draw(console: Console, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows as a table; off a terminal each in one line, however long."""
    room(console).print(table(rows, columns))


def room(console: Console) -> Console:
    """Return a console that folds nothing where no terminal says how wide it is."""
    return console if console.is_terminal else Console(width=WIDE)


def lines(console: Console, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print values under each other, a line each."""
    width = max(map(len, names)) + 1
    for name in names:
        told(console, f"{name.replace('_', ' '):<{width}} {word(values[name], name)}")


def told(console: Console, text: str) -> None:
    """Print a sentence as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def quiet(data: Mapping[str, Any], what: str) -> str:
    """Return a warning that nobody is there to act; empty while the service lives.

    Args:
        data: An answer with ``service`` and ``next``.
        what: What comes of that, e.g. ``nobody takes the order``.
    """
    if data["service"] == ALIVE:
        return ""
    return f"WARNING: the service {data['service']}, so {what}; next: {data['next']}"


def _escaped(row: Mapping[str, Any], key: str) -> Any:
    from rich.text import Text

    return Text(word(row[key], key))

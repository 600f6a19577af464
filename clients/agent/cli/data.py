"""``fleet-device label`` and ``forget``: what people say of the store's windows."""

from __future__ import annotations

import csv
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clients.agent.cli.own import check_confirmed
from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit, note
from fleet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from clients.agent.store import Store

__all__ = ["PersonOption", "forget", "label", "opened"]

PersonOption = Annotated[str, typer.Option("--person", help="Who wears the sensor.")]


def label(
    name: Annotated[str, typer.Argument(help="What was done; one of the base's labels.")] = "",
    person: PersonOption = "owner",
    start: Annotated[
        float | None, typer.Option("--from", help="Start, seconds since the epoch.")
    ] = None,
    end: Annotated[float | None, typer.Option("--to", help="End, likewise.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="One window, by its id.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV with the columns from, to and label.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take labels back.")] = False,
    author: Annotated[str, typer.Option("--by", help="Who says so.")] = "owner",
    new_class: Annotated[
        bool, typer.Option("--new-class", help="Keep labels that the base does not know (yet).")
    ] = False,
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Say what a person did, by range of time or by window; the last word holds.

    A label may come before its windows or long after. A file that was read before changes nothing.
    """
    ranged = start is not None and end is not None
    ways = [ranged, window is not None, file is not None]
    if sum(ways) != 1 or (file is None and bool(name) == clear):
        raise InputError(
            "label-unclear",
            "name a label (or --clear) with --from and --to, with --window, or give a --file",
            "Examples: fleet-device label --help",
        )
    said, folder = None if clear else name, state.expanduser()
    rows = _rows_of(file) if file is not None else []
    if not new_class:
        _check_known(folder, {label for *_, label in rows} | ({said} if said else set()))
    with opened(folder) as store:
        if file is not None:
            windows, statements = _label_rows(store, rows, person, author), len(rows)
        elif window is not None:
            windows, statements = store.labels.window(window, said, author), 1
        else:
            windows = store.labels.range(person, cast(float, start), cast(float, end), said, author)
            statements = 1
        counts = _counted(store)
    data = {"statements": statements, "windows": windows, "store": counts}
    emit(data, format, lambda console: _draw_label(console, data))


def forget(
    person: Annotated[str, typer.Argument(help="Whose data to delete.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; it cannot be taken back.")] = False,
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Delete a person's windows, labels, replay, journal, and a private core that learned of them.

    Own statistics go with anybody, and are taken anew of the windows that are left.

    End an ingest of theirs first: one that runs holds their last seconds and brings more windows.
    Counts stay, since they name nobody. Where anything of its own was served, the fleet's release
    answers at once. Updates that the server has already are listed: only its operator can act on
    them.
    """
    check_confirmed(yes, f"forgetting {person!r}", f"fleet-device forget {person}")
    from clients.agent.private.removing import forget as forget_everywhere

    folder = state.expanduser()
    with opened(folder) as store:
        done = forget_everywhere(folder, store, person)
    held = [{"plan": plan, "round": number} for plan, number in done.server_holds]
    data = {
        "person": person,
        "deleted": dict(done.deleted),
        "server_holds": held,
        "cleared": done.cleared,
    }
    emit(data, format, lambda console: _draw_forgotten(console, data))


_EXAMPLES = {
    label: (
        "fleet-device label walking --person ada --from 1767225600 --to 1767225660 --by ada",
        "fleet-device label sitting --window 118",
        "fleet-device label --file diary.csv --person ada",
        "Next: fleet-device status",
    ),
    forget: ("fleet-device forget ada --yes", "fleet-device forget ada --yes --format json"),
}
for _command, _lines in _EXAMPLES.items():
    # The root shows a function's examples under its help.
    _command.__dict__["examples"] = "Examples:\n\n" + "\n\n".join(_lines)


def opened(folder: Path) -> Store:
    """Open the store of a state directory for writing, and say what its opening found.

    Raises:
        InputError: When the configuration cannot be read.
        StorageError: See :func:`clients.agent.store.open_store`.
    """
    from clients.agent.config import load_config
    from clients.agent.store import Caps, open_store

    caps = Caps.model_validate(load_config(folder).caps.model_dump())
    store = open_store(folder, clock=time.time, caps=caps)
    for notice in store.notices:
        note(f"note: {notice}", style="yellow")
    return store


Row = tuple[float, float, str]


def _rows_of(path: Path) -> list[Row]:
    """Read a file of labels, whole or not at all."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("labels-unreadable", f"{path} cannot be read: {error}") from error
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append((float(row["from"]), float(row["to"]), row["label"].strip()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                "labels-unreadable",
                f"{path}, line {number}: needs numbers in from and to and a text in label",
                "Its first line must be: from,to,label. Nothing of the file was kept.",
            ) from error
    return found


def _label_rows(store: Store, rows: list[Row], person: str, author: str) -> int:
    """State every row in one transaction; returns how many windows it labels."""
    windows = 0
    with store.transaction():
        for start, end, said in rows:
            key = hashlib.sha256(f"{person}|{start!r}|{end!r}|{said}|{author}".encode()).hexdigest()
            windows += store.labels.range(person, start, end, said, author, key[:32])
    return windows


def _check_known(folder: Path, labels: set[str]) -> None:
    """Refuse labels that training would leave out, before somebody has typed a day's worth."""
    from clients.agent.serving.folder import ModelFolder
    from fleet.adapt.base import load_base

    path = ModelFolder(folder).base_in_use()
    known = load_base(path).record.labels if path.is_file() else ()
    strange = sorted(label for label in labels if label.strip() and label not in known)
    if known and strange:
        raise InputError(
            "unknown-label",
            f"the base knows {', '.join(known)}; not {', '.join(strange[:5])}",
            "Spell it as the base does, or keep it with --new-class; it does not train before the"
            " fleet's base knows it.",
        )


def _counted(store: Store) -> list[dict[str, Any]]:
    return [
        {"split": split, "label": name, "windows": count}
        for (split, name), count in store.windows.counts().items()
    ]


def _draw_label(console: Console, data: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"{data['statements']} statement(s), {data['windows']} window(s) labelled now")
    table = Table("split", "label", "windows")
    for row in data["store"]:
        table.add_row(row["split"], row["label"] or "(none)", str(row["windows"]))
    console.print(table)


def _draw_forgotten(console: Console, data: dict[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in data["deleted"].items() if count)
    console.print(f"deleted: {kinds or 'nothing was kept of this person'}")
    for row in data["server_holds"]:
        console.print(f"the server holds an update: plan {row['plan']}, round {row['round']}")
    if not data["cleared"]:
        console.print("another process reads the store; its log is emptied when that ends")

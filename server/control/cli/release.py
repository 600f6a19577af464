"""``fleet release``: what the fleet serves, and going back.

A number names a release of the registry, a path one in a file; that is the whole rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fleet.errors import InputError
from server.control import requests as r
from server.control.cli import release_files as files
from server.control.cli.asking import (
    DryRunOption,
    WhyOption,
    YesOption,
    confirmed,
    fresh_key,
    reach_of,
)
from server.control.cli.reaching import reaching
from server.control.cli.rebase import EXAMPLES, rebase
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, lines, quiet, told, word
from server.control.reach import Reach

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

COLUMNS = ("number", "digest", "base", "current", "signed", "created", "promoted", "withdrawn")
DETAILS = (
    *("number", "digest", "base", "frame", "parent", "method", "entries", "norm", "current"),
    *("signed", "created", "promoted", "withdrawn", "rebase", "served_by", "pinned"),
)
Either = Annotated[
    str,
    typer.Argument(
        help="Number of a release of the registry; or a path: a release's file, or a run's or "
        "method's folder for its last one."
    ),
]
File = Annotated[
    Path, typer.Argument(help="A release's file, or a run's or method's folder for its last one.")
]
Number = Annotated[int, typer.Argument(min=0, help="Its number.")]


@app.callback()
def group() -> None:
    """Look at releases, in the registry by number or in files by path; move the fleet to one."""


@app.command("list", epilog="Examples:\n\nfleet release list\n\nfleet release list runs/hapt/core")
@reaching
def list_(
    reach: Reach,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of runs, of a run or of one method in it: runs/hapt/core."),
    ] = None,
    newest: Annotated[int, typer.Option(min=1, max=1000, help="How many of the registry.")] = 50,
    form: FormatOption = Format.table,
) -> None:
    """List releases by number: those of the registry, or of a folder, and that they are chained."""
    if folder is not None:
        rows = files.listed(folder)
        data: dict[str, Any] = {"folder": str(folder), "releases": rows}
        emit(data, form, lambda console: files.draw_list(console, rows))
        return
    with reach.open() as verbs:
        found = verbs.ask(r.ReleaseList(newest=newest)).data
    emit(found, form, lambda console: draw(console, found["releases"], COLUMNS))


@app.command(
    epilog="Examples:\n\nfleet release show 8\n\n"
    "fleet release show runs/hapt/core/releases/000008.safetensors"
)
@reaching
def show(reach: Reach, release: Either, form: FormatOption = Format.table) -> None:
    """Show one release: digest, base, parent, devices and weights, entries by layer."""
    if (number := _number(release)) is None:
        data = files.shown(Path(release))
        emit(data, form, lambda console: files.draw_show(console, data))
        return
    with reach.open() as verbs:
        found = verbs.ask(r.ReleaseShow(release=number)).data
    emit(found, form, lambda console: _show(console, found["release"]))


@app.command(epilog="Example:\n\nfleet release digest runs/hapt/core/releases/000008.safetensors")
def digest(release: File, form: FormatOption = Format.table) -> None:
    """Print the digest of a release in a file, recomputed from its content."""
    found = files.load(files.file_of(release))
    emit(
        {"digest": found.digest, "state": found.state.digest},
        form,
        lambda console: told(console, found.digest),
    )


@app.command(
    epilog="Example:\n\nfleet release merge runs/hapt/core/releases/000008.safetensors "
    "--out model.safetensors"
)
def merge(
    release: File,
    out: Annotated[Path, typer.Option(help="File of the merged model (safetensors).")],
    base: Annotated[
        Path | None, typer.Option(help="The base; default: base.safetensors above the release.")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Merge a release in a file into the dense kernels of its base and write the model."""
    from fleet.adapt.base import load_base
    from fleet.federate.served import save_merged

    file = files.file_of(release)
    found = files.load(file)
    merged = save_merged(load_base(base or files.base_above(file)), found, out)
    data = {"file": str(out), "digest": merged, "release": [found.number, found.digest]}
    text = f"release {found.number} merged into {out}\ndigest {merged}"
    emit(data, form, lambda console: told(console, text))


@app.command(
    epilog="Examples:\n\nfleet release diff 1 8\n\n"
    "fleet release diff runs/hapt/core/releases/000001.safetensors "
    "runs/hapt/core/releases/000008.safetensors"
)
@reaching
def diff(reach: Reach, one: Either, two: Either, form: FormatOption = Format.table) -> None:
    """Compare two releases of one base: how far each layer's entries moved."""
    first, second = _number(one), _number(two)
    if first is None and second is None:
        data = files.compared(Path(one), Path(two))
    elif first is None or second is None:
        raise InputError(
            "mixed-releases",
            f"one of {one} and {two} is in the registry and one in a file",
            "Bring it into a file first: fleet release export N --out FILE",
        )
    else:
        with reach.open() as verbs:
            data = dict(verbs.ask(r.ReleaseDiff(first=first, second=second)).data)
    emit(data, form, lambda console: files.draw_diff(console, data))


@app.command(
    epilog="Examples:\n\nfleet release promote 8 --dry-run\n\nfleet release promote 8 --yes"
)
@reaching
def promote(
    reach: Reach,
    number: Number,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Make a release the fleet's: devices that are pinned to none move to it."""
    asked = r.ReleasePromote(key=fresh_key(), release=number, why=reason, dry_run=dry_run)
    _moved(reach, asked, f"promote release {number}", yes, form)


@app.command(
    epilog="Examples:\n\nfleet release rollback --dry-run\n\n"
    "fleet release rollback 7 --why 'falls missed' --yes"
)
@reaching
def rollback(
    reach: Reach,
    number: Annotated[
        int | None, typer.Argument(min=0, help="Default: the one that the fleet's was made from.")
    ] = None,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Make an earlier release the fleet's: the same digest as before, nothing is subtracted."""
    asked = r.ReleaseRollback(key=fresh_key(), release=number, why=reason, dry_run=dry_run)
    target = "the release before" if number is None else f"release {number}"
    _moved(reach, asked, f"roll back to {target}", yes, form)


app.command(epilog=EXAMPLES)(rebase)


@app.command(
    epilog="Examples:\n\nfleet release pin 7 --device kitchen-1 --yes\n\n"
    "fleet release pin 7 --tag ward-3 --dry-run\n\nfleet release pin --none --tag ward-3 --yes"
)
@reaching
def pin(
    reach: Reach,
    number: Annotated[int | None, typer.Argument(min=0, help="Its number.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Follow the fleet again.")] = False,
    device: Annotated[str, typer.Option(help="This device.")] = "",
    tag: Annotated[str, typer.Option(help="All devices that have this tag now.")] = "",
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Keep devices on a release whatever the fleet is moved to, or let them follow it again."""
    if (number is None) != none:
        raise InputError("one-of-both", "a pin is a release or --none", "See: fleet release list")
    asked = r.ReleasePin(
        key=fresh_key(), release=number, device=device, tag=tag, why=reason, dry_run=dry_run
    )
    what = "let them follow the fleet" if none else f"pin to release {number}"
    with reach.open() as verbs:
        data = confirmed(verbs, asked, what, yes).data
    text = f"{'would touch' if dry_run else 'changed'} {reach_of(data['touches'])}"
    emit(data, form, lambda console: told(console, text))


@app.command(epilog="Example:\n\nfleet release withdraw 7 --why 'trained on a broken sensor' --yes")
@reaching
def withdraw(
    reach: Reach,
    number: Number,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Forbid for good that devices are moved to a release."""
    asked = r.ReleaseWithdraw(key=fresh_key(), release=number, why=reason, dry_run=dry_run)
    _moved(reach, asked, f"withdraw release {number}", yes, form)


@app.command(epilog="Example:\n\nfleet release export 8 --out 000008.safetensors")
@reaching
def export(
    reach: Reach,
    number: Number,
    out: Annotated[Path, typer.Option(help="File of the release (safetensors).")],
    form: FormatOption = Format.table,
) -> None:
    """Write a release of the registry to a file, as `fleet release show FILE` reads it."""
    from fleet.files import write_bytes

    with reach.open() as verbs:
        answer = verbs.ask(r.ReleaseExport(release=number))
    write_bytes(out, answer.content)
    data = {**answer.data, "file": str(out)}
    text = f"release {number} is in {out}\ndigest {data['digest']}"
    emit(data, form, lambda console: told(console, text))


@app.command(epilog="Example:\n\nfleet release verify")
@reaching
def verify(reach: Reach, form: FormatOption = Format.table) -> int:
    """Check digest, lineage and signature of every release of the registry; 1 when one is wrong."""
    with reach.open() as verbs:
        data = verbs.ask(r.ReleaseVerify()).data
    columns = ("number", "digest", "signature", "key", "problems")
    emit(data, form, lambda console: draw(console, data["releases"], columns))
    return int(not data["sound"])


def _number(release: str) -> int | None:
    return int(release) if release.isascii() and release.isdigit() else None


def _moved(reach: Reach, asked: r.Destruction, what: str, yes: bool, form: Format) -> None:
    with reach.open() as verbs:
        data = confirmed(verbs, asked, what, yes).data
    done = "would touch" if asked.dry_run else "touched"
    text = f"{what}: {done} {reach_of(data['touches'])}"
    if not data["changed"]:
        state = "was withdrawn" if isinstance(asked, r.ReleaseWithdraw) else "is the fleet's"
        text = f"release {data['release']['number']} {state} already"
    elif "service" in data:
        text = f"{text}\n{quiet(data, 'no device is told')}".rstrip()
    emit(data, form, lambda console: told(console, text))


def _show(console: Console, found: dict[str, Any]) -> None:
    lines(console, found, DETAILS)
    rows = [
        {"entry": name, "shape": "×".join(map(str, layer["shape"])), "largest": layer["largest"]}
        for name, layer in found["layers"].items()
    ]
    draw(console, rows, ("entry", "shape", "largest"))
    told(console, f"provenance {word(found['provenance'])}")

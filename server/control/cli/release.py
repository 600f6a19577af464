"""``fleet release``: list, show, compare, verify and merge releases in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError, StorageError
from server.control.cli.render import Format, FormatOption, emit

if TYPE_CHECKING:
    from fleet.federate.releases import Release

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

BASE_FILE = "base.safetensors"
# A run's folder stands for the releases of this method where it has them.
LEADING_METHOD = "core"
Folder = Annotated[
    Path, typer.Argument(help="Folder of a run or of one method in it, e.g. runs/hapt/core.")
]
File = Annotated[
    Path, typer.Argument(help="A release's file, or a run's or method's folder for its last one.")
]


@app.callback()
def group() -> None:
    """List, show, compare and merge releases."""


@app.command("list", epilog="Examples:\n\nfleet release list\n\nfleet release list runs/hapt/core")
def list_(folder: Folder = Path("runs"), form: FormatOption = Format.table) -> None:
    """List releases, oldest first, and check that each follows from the one before.

    Without a folder: those of the newest run in runs/.
    """
    releases = [_load(path) for path in _files(folder)]
    rows = []
    parent = None
    for release in releases:
        whole = parent is None or release.parent == parent
        rows.append(
            {
                "number": release.number,
                "digest": release.digest,
                "parent": release.parent,
                "method": release.method,
                "entries": release.state.layout.size,
                "norm": round(release.state.norm, 6),
                "devices": len(release.provenance.get("devices", {})),
                "chained": whole,
            }
        )
        parent = release.digest
    emit({"folder": str(folder), "releases": rows}, form, lambda console: _list(console, rows))


@app.command(epilog="Example:\n\nfleet release show runs/hapt/core/releases/000008.safetensors")
def show(release: File, form: FormatOption = Format.table) -> None:
    """Show one release: digest, base, parent, devices and weights, entries by layer."""
    found = _load(_file(release))
    data = _about(found) | {
        "provenance": dict(found.provenance),
        "layers": {
            name: {"shape": list(array.shape), "largest": float(abs(array).max(initial=0.0))}
            for name, array in found.state.arrays.items()
        },
    }
    emit(data, form, lambda console: _show(console, data))


@app.command(epilog="Example:\n\nfleet release digest runs/hapt/core/releases/000008.safetensors")
def digest(release: File, form: FormatOption = Format.table) -> None:
    """Print a release's digest, recomputed from its content."""
    found = _load(_file(release))
    emit(
        {"digest": found.digest, "state": found.state.digest},
        form,
        lambda console: console.print(found.digest, highlight=False),
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
    """Merge a release into the dense kernels of its base and write the model."""
    from fleet.adapt.base import load_base
    from fleet.federate.served import save_merged

    file = _file(release)
    found = _load(file)
    merged = save_merged(load_base(base or _base_above(file)), found, out)
    data = {"file": str(out), "digest": merged, "release": [found.number, found.digest]}
    emit(
        data,
        form,
        lambda console: console.print(
            f"release {found.number} merged into {out}\ndigest {merged}", highlight=False
        ),
    )


@app.command(
    epilog="Example:\n\nfleet release diff runs/hapt/core/releases/000001.safetensors "
    "runs/hapt/core/releases/000008.safetensors"
)
def diff(one: File, two: File, form: FormatOption = Format.table) -> None:
    """Compare two releases of one base: how far each layer's entries moved."""
    first, second = _load(_file(one)), _load(_file(two))
    moved = second.state - first.state
    layers = {
        name: {
            "norm": float((array.astype("float64") ** 2).sum() ** 0.5),
            "largest": float(abs(array).max(initial=0.0)),
        }
        for name, array in moved.arrays.items()
    }
    data = {
        "from": _about(first),
        "to": _about(second),
        "same_base": first.base == second.base,
        "norm": moved.norm,
        "layers": layers,
    }
    emit(data, form, lambda console: _diff(console, data))


def _load(path: Path) -> Release:
    from fleet.federate.releases import load_release

    return load_release(path)


def _files(folder: Path) -> list[Path]:
    """Return the releases of a method's folder, a run's folder or, of many runs, the newest."""
    runs = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    methods = [folder / LEADING_METHOD, *sorted(p.parent for p in folder.glob("*/releases"))]
    newest = [run.parent / LEADING_METHOD for run in runs[:1]]
    for place in (folder, *methods, *newest):
        for inner in (place / "releases", place):
            files = sorted(inner.glob("[0-9]*.safetensors"))
            if files:
                return files
    raise InputError(
        "no-releases",
        f"there are no releases in {folder}",
        "Name a run's folder or a method's inside it, e.g. runs/hapt or runs/hapt/core.",
    )


def _file(path: Path) -> Path:
    return _files(path)[-1] if path.is_dir() else path


def _base_above(file: Path) -> Path:
    for folder in file.resolve().parents[:4]:
        if (folder / BASE_FILE).exists():
            return folder / BASE_FILE
    raise StorageError(
        "base-missing", f"there is no {BASE_FILE} in the folders above {file}", "Name it: --base."
    )


def _about(release: Release) -> dict[str, Any]:
    return {
        "number": release.number,
        "digest": release.digest,
        "base": release.base,
        "frame": release.frame,
        "parent": release.parent,
        "method": release.method,
        "entries": release.state.layout.size,
    }


def _list(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("number", "digest", "method", "entries", "norm", "devices", "chained"):
        table.add_column(name, justify="left" if name in ("digest", "method") else "right")
    for row in rows:
        chained = "yes" if row["chained"] else "NO"
        table.add_row(
            str(row["number"]),
            row["digest"][:16],
            row["method"],
            f"{row['entries']:,}",
            f"{row['norm']:.4f}",
            str(row["devices"]),
            chained,
        )
    console.print(table)


def _show(console: Console, data: dict[str, Any]) -> None:
    for name in ("number", "digest", "base", "frame", "parent", "method", "entries"):
        console.print(f"{name:<8} {data[name]}", highlight=False, soft_wrap=True)
    table = Table("entry", "shape", "largest")
    for name, layer in data["layers"].items():
        table.add_row(name, "×".join(map(str, layer["shape"])), f"{layer['largest']:.5f}")
    console.print(table)


def _diff(console: Console, data: dict[str, Any]) -> None:
    table = Table("entry", "norm of the change", "largest change")
    for name, layer in data["layers"].items():
        table.add_row(name, f"{layer['norm']:.5f}", f"{layer['largest']:.5f}")
    console.print(table)
    ends = f"release {data['from']['number']} to {data['to']['number']}"
    console.print(f"{ends}: norm {data['norm']:.5f}", highlight=False)

"""Releases in files: a run's folder, a method's folder in it, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fleet.errors import InputError, StorageError

if TYPE_CHECKING:
    from fleet.federate.releases import Release

__all__ = [
    "about",
    "base_above",
    "compared",
    "draw_diff",
    "draw_list",
    "draw_show",
    "file_of",
    "listed",
    "load",
    "shown",
]

BASE_FILE = "base.safetensors"
# A run's folder stands for the releases of this method where it has them.
LEADING_METHOD = "core"


def listed(folder: Path) -> list[dict[str, Any]]:
    """Return the releases of a folder, oldest first, and whether each follows the one before."""
    rows: list[dict[str, Any]] = []
    parent = None
    for release in map(load, _files(folder)):
        rows.append(
            {
                "number": release.number,
                "digest": release.digest,
                "parent": release.parent,
                "method": release.method,
                "entries": release.state.layout.size,
                "norm": round(release.state.norm, 6),
                "devices": len(release.provenance.get("devices", {})),
                "chained": parent is None or release.parent == parent,
            }
        )
        parent = release.digest
    return rows


def shown(path: Path) -> dict[str, Any]:
    """Return one release: digest, base, parent, devices and weights, entries by layer."""
    found = load(file_of(path))
    return about(found) | {
        "provenance": dict(found.provenance),
        "layers": {
            name: {"shape": list(array.shape), "largest": float(abs(array).max(initial=0.0))}
            for name, array in found.state.arrays.items()
        },
    }


def compared(one: Path, two: Path) -> dict[str, Any]:
    """Return how far each layer's entries moved from one release to another of its base."""
    first, second = load(file_of(one)), load(file_of(two))
    moved = second.state - first.state
    layers = {
        name: {
            "norm": float((array.astype("float64") ** 2).sum() ** 0.5),
            "largest": float(abs(array).max(initial=0.0)),
        }
        for name, array in moved.arrays.items()
    }
    return {
        "from": about(first),
        "to": about(second),
        "same_base": first.base == second.base,
        "norm": moved.norm,
        "layers": layers,
    }


def load(path: Path) -> Release:
    """Read one file."""
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


def file_of(path: Path) -> Path:
    """Return a file, or the last release's of a folder."""
    return _files(path)[-1] if path.is_dir() else path


def base_above(file: Path) -> Path:
    """Return the base of a release's file: base.safetensors in a folder above it."""
    for folder in file.resolve().parents[:4]:
        if (folder / BASE_FILE).exists():
            return folder / BASE_FILE
    raise StorageError(
        "base-missing", f"there is no {BASE_FILE} in the folders above {file}", "Name it: --base."
    )


def about(release: Release) -> dict[str, Any]:
    """Return what a release is."""
    return {
        "number": release.number,
        "digest": release.digest,
        "base": release.base,
        "frame": release.frame,
        "parent": release.parent,
        "method": release.method,
        "entries": release.state.layout.size,
    }


def draw_list(console: Console, rows: list[dict[str, Any]]) -> None:
    """Draw the releases of a folder."""
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


def draw_show(console: Console, data: dict[str, Any]) -> None:
    """Draw one release."""
    for name in ("number", "digest", "base", "frame", "parent", "method", "entries"):
        console.print(f"{name:<8} {data[name]}", highlight=False, soft_wrap=True)
    table = Table("entry", "shape", "largest")
    for name, layer in data["layers"].items():
        table.add_row(name, "×".join(map(str, layer["shape"])), f"{layer['largest']:.5f}")
    console.print(table)


def draw_diff(console: Console, data: dict[str, Any]) -> None:
    """Draw how far two releases are apart."""
    table = Table("entry", "norm of the change", "largest change")
    for name, layer in data["layers"].items():
        table.add_row(name, f"{layer['norm']:.5f}", f"{layer['largest']:.5f}")
    console.print(table)
    ends = f"release {data['from']['number']} to {data['to']['number']}"
    console.print(f"{ends}: norm {data['norm']:.5f}", highlight=False)

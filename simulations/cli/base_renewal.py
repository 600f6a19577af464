"""``fleet base rebase|grow``: a new base of an old one, for a fleet to move to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fleet.errors import InputError
from server.control.cli.release_files import base_above, file_of, load
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import lines, told

if TYPE_CHECKING:
    from fleet.adapt.base import Base
    from simulations.rebasing import Rebased

__all__ = ["GROW_EXAMPLES", "REBASE_EXAMPLES", "grow", "rebase"]

REBASE_EXAMPLES = (
    "Examples:\n\nfleet base rebase --release runs/hapt --data hapt --out hapt-2.safetensors\n\n"
    "fleet base rebase --release 000012.safetensors --base base.safetensors --data my.npz "
    "--rank 4 --out my-2.safetensors\n\n"
    "A server's release in a file: fleet release export 12 --out 000012.safetensors"
)
GROW_EXAMPLES = (
    "Example:\n\nfleet base grow --base hapt.safetensors --label cycling --label rowing "
    "--out hapt-8.safetensors\n\nNext: fleet base install hapt-8.safetensors"
)
Out = Annotated[Path, typer.Option(help="File of the new base.")]


def rebase(
    release: Annotated[
        Path, typer.Option(help="A release's file, or a run's or method's folder for its last one.")
    ],
    data: Annotated[str, typer.Option(help="Name or path of the data that the base is of.")],
    out: Out,
    base: Annotated[
        Path | None, typer.Option(help="Its base; default: base.safetensors above the release.")
    ] = None,
    classes: Annotated[str, typer.Option(help="basic or all.")] = "basic",
    frame: Annotated[
        str, typer.Option(help="svd, tt, random, gradient or people; default: as the base has.")
    ] = "",
    rank: Annotated[
        int | None, typer.Option(help="Columns of each core; default: as the base has.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Divides the people, as in fleet base train; of learned frames.")
    ] = 0,
    form: FormatOption = Format.table,
) -> None:
    """Make the base that serves without a core what a release serves, with new frames."""
    from fleet.adapt.base import load_base, save_base
    from fleet.config import RunConfig
    from fleet.har.population import population_of
    from simulations import rebasing
    from simulations.cli.display import Display

    _check_new(out)
    file = file_of(release)
    found, old = load(file), load_base(base or base_above(file))
    # Before the data is read, which takes longer.
    rebasing.merged_by(old, found)
    kind = frame or old.record.frame_kind
    wide = old.record.rank if rank is None else rank
    config = RunConfig.parse(
        {"data": data, "classes": classes, "frame": kind, "rank": wide, "seed": seed}
    )
    with Display(visible=form is Format.table) as progress:
        progress.stage("rebase", 3)
        population = population_of(config)
        progress.advance("data")
        made = rebasing.rebase(
            old,
            found,
            population,
            kind=config.frame,
            rank=rank,
            seed=seed,
            on_step=progress.advance,
        )
    save_base(made.base, out)
    _show_rebased(made, population.dataset.name, out, form)


def grow(
    base: Annotated[Path, typer.Option(help="A base's file.")],
    label: Annotated[list[str], typer.Option(help="A new class; once for each.")],
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Root of the new rows of the head.")] = 0,
    form: FormatOption = Format.table,
) -> None:
    """Give a base further classes; old ones keep their places, weights and frames."""
    from fleet.adapt.base import load_base, save_base
    from simulations import rebasing

    _check_new(out)
    old = load_base(base)
    new = rebasing.grow(old, label, seed=seed)
    save_base(new, out)
    data = {
        "file": str(out),
        "digest": new.digest,
        "frame_digest": new.frame_digest,
        "grown_from": old.digest,
        "labels": list(old.record.labels),
        "new_labels": list(new.record.labels[len(old.record.labels) :]),
    }

    def show(console: Console) -> None:
        lines(console, data, ("labels", "new_labels"))
        _next(console, new, out)

    emit(data, form, show)


def _check_new(out: Path) -> None:
    if out.exists():
        raise InputError("file-exists", f"{out} exists already; a base is never overwritten", "")


def _show_rebased(made: Rebased, dataset: str, out: Path, form: Format) -> None:
    from fleet.continual.growth import ROUNDING

    new, old, release = made.base, made.old, made.release
    data: dict[str, Any] = {
        "file": str(out),
        "digest": new.digest,
        "frame_digest": new.frame_digest,
        "rebased_from": {
            "base": old.digest,
            "release": release.number,
            "digest": release.digest,
            "moved": made.moved,
        },
        "frame": new.record.frame_kind,
        "ranks": {name: frame.rank for name, frame in sorted(new.frames.items())},
        "calibrated_on": f"{dataset}: people {', '.join(map(str, made.people))}",
        "new_frames": new.frame_digest != old.frame_digest,
        "apart": made.apart,
        "at_most": ROUNDING,
    }

    def show(console: Console) -> None:
        ranks = ", ".join(f"{name} {rank}" for name, rank in data["ranks"].items())
        told(console, f"release {release.number} ({release.digest[:16]}) of base {old.digest[:16]}")
        told(console, f"frames {new.record.frame_kind}: {ranks}; of {data['calibrated_on']}")
        told(
            console,
            f"kernels are {made.apart:.1e} of their largest entry from the release's, "
            f"at most {ROUNDING:.0e}",
        )
        if not made.moved:
            told(console, f"release {release.number} moves nothing: only the frames are renewed")
        _next(console, new, out, old)

    emit(data, form, show)


def _next(console: Console, new: Base, out: Path, old: Base | None = None) -> None:
    # In one piece on any terminal, to be copied.
    told(console, f"digest {new.digest}")
    if old is not None and new.digest == old.digest:
        told(console, "This is the old base: the frames are the same, too.")
    else:
        told(console, f"Next: fleet base install {out}, then fleet release rebase {new.digest}")

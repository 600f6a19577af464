"""What a device could serve, and whether all of it is whole."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from clients.agent.serving.folder import CURRENT, LAST_GOOD
from clients.agent.serving.kept import load_kept
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.agent.serving.serve import Serving
from clients.agent.serving.whole import open_served
from fleet.adapt.base import load_base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.merge import merge
from fleet.errors import FleetError, StorageError

__all__ = ["BaseRow", "Check", "ReleaseRow", "list_bases", "list_releases", "verify"]


class ReleaseRow(BaseModel):
    """One release that a device can go to.

    Args:
        number: Its number; 0 is the base.
        name: Name of its file.
        state: Digest of its core state; empty when the file is damaged.
        published: Its digest as the server publishes it; empty when the state came alone.
        method: What was trained.
        served: ``current``, ``last-good`` or empty.
        problem: Why it cannot be used; empty when it can.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    name: str
    state: str = ""
    published: str = ""
    method: str = ""
    served: str = ""
    problem: str = ""


class BaseRow(BaseModel):
    """One base that a device holds.

    Args:
        digest: Its digest; empty when the file is damaged.
        file: Name of its file.
        model: The backbone.
        classes: How many it knows.
        use: ``in use``, that of what is served; ``first``, the one that the device was set up
            with, when it is another; or empty.
        problem: Why it cannot be used; empty when it can.
    """

    model_config = ConfigDict(frozen=True)

    digest: str = ""
    file: str
    model: str = ""
    classes: int = 0
    use: str = ""
    problem: str = ""


class Check(BaseModel):
    """One file that was verified.

    Args:
        what: ``base``, ``base DIGEST`` of a later one, ``current``, ``last-good``, ``personal`` or
            a release's name.
        digest: Digest of what it holds; empty when that could not be read.
        problem: What is wrong; empty when it is whole.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    digest: str = ""
    problem: str = ""


def list_bases(serving: Serving) -> list[BaseRow]:
    """Return the bases that a device holds, the first before the later ones."""
    folder = serving.folder
    in_use, rows = folder.base_in_use(), []
    for path in [folder.base, *folder.base_files()]:
        use = "in use" if path == in_use else "first" if path == folder.base else ""
        try:
            base = load_base(path)
        except FleetError as error:
            rows.append(BaseRow(file=path.name, use=use, problem=error.message))
            continue
        model = base.record.model
        row = BaseRow(digest=base.digest, file=path.name, model=model.name, use=use)
        rows.append(row.model_copy(update={"classes": model.classes}))
    return rows


def list_releases(serving: Serving) -> list[ReleaseRow]:
    """Return the kept releases, ascending by number, after the base where that is served."""
    folder = serving.folder
    marks = {p.name: w for w, p in ((LAST_GOOD, serving.last_good), (CURRENT, serving.served)) if p}
    rows = []
    for name in folder.release_names():
        number, served = int(name.split("-")[0]), marks.pop(name, "")
        try:
            kept = load_kept(folder.release_file(name))
        except FleetError as error:
            rows.append(ReleaseRow(number=number, name=name, served=served, problem=error.message))
            continue
        rows.append(
            ReleaseRow(
                number=number,
                name=name,
                state=kept.state.digest,
                published=kept.published,
                method=kept.method,
                served=served,
            )
        )
    # What is served and not kept: the base, or a release whose file is gone.
    rest = (
        ReleaseRow(number=int(name.split("-")[0]), name=name, method="", served=which)
        for name, which in marks.items()
    )
    return sorted([*rest, *rows], key=lambda row: (row.number, row.name))


def verify(serving: Serving) -> list[Check]:
    """Read back everything: base, both served models, every kept release; change nothing.

    A served model is also compared with its release merged anew from the base.
    """
    folder = serving.folder
    checks = [_base("base", folder.base)]
    checks += [_base(f"base {path.stem}", path) for path in folder.base_files()]
    checks += [_served(serving, which) for which in (CURRENT, LAST_GOOD)]
    checks.append(_own(serving))
    checks += [_release(folder.release_file(name)) for name in folder.release_names()]
    return [check for check in checks if check.digest or check.problem]


def _base(what: str, path: Path) -> Check:
    try:
        return Check(what=what, digest=load_base(path).digest)
    except FleetError as error:
        return Check(what=what, problem=error.message)


def _served(serving: Serving, which: str) -> Check:
    folder = serving.folder
    try:
        pointer = folder.pointer(which)
        if pointer is None:
            return Check(what=which)
        open_served(folder.served_file(pointer.name), pointer)
        kept = folder.release_file(pointer.name)
        if kept.exists():
            release = load_kept(kept)
            opened = serving.held.bases.opened(release.base)
            moved = merge(opened.parameters, opened.base.frames, release.state)
            anew = digest_arrays(moved)
            if anew != pointer.digest:
                raise StorageError(
                    "served-differs",
                    f"{pointer.name} serves {pointer.digest[:12]}…, merged anew it is {anew[:12]}…",
                )
        return Check(what=which, digest=pointer.digest)
    except FleetError as error:
        return Check(what=which, problem=error.message)


def _own(serving: Serving) -> Check:
    found = personal_of(serving.folder)
    if found is None:
        return Check(what=PERSONAL)
    try:
        open_served(serving.folder.own / f"{found.own.name}.safetensors", found.own)
        return Check(what=PERSONAL, digest=found.own.digest)
    except FleetError as error:
        return Check(what=PERSONAL, problem=error.message)


def _release(path: Path) -> Check:
    try:
        return Check(what=path.stem, digest=load_kept(path).state.digest)
    except FleetError as error:
        return Check(what=path.stem, problem=error.message)

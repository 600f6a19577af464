"""``fleet server backup`` and ``fleet server restore``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import InputError
from server.control.cli.asking import DryRunOption, YesOption
from server.control.cli.folder import FolderOption, folder_of, now
from server.control.cli.render import Format, FormatOption, emit, progress_console
from server.control.cli.tables import told
from server.control.user import user
from server.service.folder import DEFAULT_FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from server.control.backups.restoring import Staged

__all__ = ["BACKUP_EXAMPLES", "RESTORE_EXAMPLES", "backup", "restore"]

BACKUP_EXAMPLES = (
    "Examples:\n\nfleet server backup\n\nfleet server backup /mnt/safe/monday.tar\n\n"
    "fleet server backup /mnt/safe/with-keys.tar --with-keys"
)
RESTORE_EXAMPLES = (
    "Examples:\n\nfleet server restore monday.tar --dry-run\n\n"
    "fleet server restore monday.tar --yes\n\nNext: fleet server init"
)


def backup(
    file: Annotated[
        Path | None, typer.Argument(help="The file; without one: backups/ in the server's folder.")
    ] = None,
    folder: FolderOption = DEFAULT_FOLDER,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="Also release-key, server.key and the SuperExec secret."),
    ] = False,
    with_authority_key: Annotated[
        bool, typer.Option("--with-authority-key", help="Also ca.key, which signs for everybody.")
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Back the server up to one file while it runs: registry, enrolled nodes, server.toml, ca.crt.

    Without --with-keys no private key is in it; keep those apart. A registry on PostgreSQL is
    backed up by pg_dump; the command is named.
    """
    from server.control.backups.writing import write_archive
    from server.control.reach import BACKUPS, opened_fleet

    place, at = folder_of(folder), now()
    path = place.path / BACKUPS / f"server-{at:%Y%m%dT%H%M%S}.tar" if file is None else file
    path = path.expanduser().absolute()
    with opened_fleet(place).registry as registry:
        made = write_archive(
            registry, place, path, at, keys=with_keys, authority_key=with_authority_key
        )
    warning = _warning(path, sorted(made.files))
    if warning:
        progress_console().print(warning, style="bold red", highlight=False, soft_wrap=True)
    data = {"file": str(path), "bytes": path.stat().st_size, **made.model_dump(mode="json")}
    data |= {"files": sorted(made.files), "warning": warning}
    text = (
        f"{', '.join(data['files'])} are in {path}\n"
        f"the audit ends with row {made.seq}; write down: {made.hash}"
    )
    emit(data, form, lambda console: told(console, text))


def restore(
    file: Annotated[Path, typer.Argument(help="What fleet server backup wrote.")],
    folder: FolderOption = DEFAULT_FOLDER,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Put a backup into the server's folder, after a check of all of it; the server must not run.

    Only --dry-run, which checks all of it as well, may be asked for beside a running server. What
    another file replaces is moved aside within the folder; nothing is deleted.
    """
    from server.control.backups.restoring import staged

    place, at = folder_of(folder), now()
    with staged(file.expanduser().absolute(), place, looking=dry_run) as found:
        data: dict[str, Any] = {"folder": str(place.path), "dry_run": dry_run, **found.record()}
        if not dry_run:
            _confirm(found, file, yes)
        aside = None if dry_run else found.place(user(), at)
        data["aside"] = aside and str(aside)
        emit(data, form, lambda console: _restored(console, found, data))


def _confirm(found: Staged, file: Path, yes: bool) -> None:
    if not found.replaces or yes:
        return
    text = "\n".join([f"restore {file}: {found.replaces}", *found.change.warnings])
    if not (sys.stdin.isatty() and typer.confirm(f"{text}. Do it?", err=True)):
        raise InputError("not-confirmed", f"not confirmed: {text}", "To do it, add --yes.")


def _restored(console: Console, found: Staged, data: dict[str, Any]) -> None:
    did = "would restore" if data["dry_run"] else "restored"
    told(console, f"{did} {found.brings.text}, as of {data['made_at']}, into {data['folder']}")
    if found.replaces:
        told(console, f"{'would move' if data['dry_run'] else 'moved'} aside: {found.replaces}")
    for line in found.change.warnings:
        told(console, line)
    if data["lacking"]:
        told(
            console,
            f"{' and '.join(data['lacking'])} are neither in the backup nor here: put them into "
            "the folder first, from where you keep them; with new ones, devices and releases "
            "do not fit any more (docs/operate.md)",
        )
    if data["running"]:
        told(console, f"before it is restored, end {', '.join(data['running'])}: SIGTERM to up")
    if not data["dry_run"]:
        told(console, "Next: fleet server init, which completes what is missing; fleet server up")


def _warning(path: Path, files: list[str]) -> str:
    secret = [name for name in files if name in ("release-key", "server.key", "ca.key")]
    if not secret:
        return ""
    text = f"WARNING: {path} holds the private keys {', '.join(secret)}: whoever reads it can speak"
    text += " as this server and sign releases"
    if "ca.key" in secret:
        text += ", and let any device or operator in"
    return f"{text}. Encrypt it, and keep it apart from this machine."

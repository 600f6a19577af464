"""How commands ask: a key for every change, a confirmation for what takes something away."""

from __future__ import annotations

import sys
import uuid
from typing import Annotated, Any

import typer

from fleet.errors import InputError
from server.control.requests import Destruction
from server.control.seam import Answer, Verbs

__all__ = ["DryRunOption", "WhyOption", "YesOption", "confirmed", "fresh_key", "reach_of"]

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask; needed off a terminal.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only tell what it would touch.")]
WhyOption = Annotated[str, typer.Option("--why", help="The reason, for the audit.")]
NAMED = 5
"""Devices that a question names."""


def fresh_key() -> str:
    """Return a new idempotency key."""
    return uuid.uuid4().hex


def confirmed(verbs: Verbs, asked: Destruction, what: str, yes: bool) -> Answer:
    """Ask for what takes something away, once a person or ``--yes`` has confirmed it.

    Args:
        verbs: Who is asked.
        asked: What; with ``dry_run`` nothing is confirmed or changed.
        what: The deed in a few words, e.g. ``revoke kitchen-1``.
        yes: Whether it is confirmed already.

    Raises:
        InputError: ``not-confirmed``, naming the blast radius.
    """
    tried = verbs.ask(asked.model_copy(update={"dry_run": True}))
    if asked.dry_run:
        return tried
    told = f"{what}: touches {reach_of(tried.data['touches'])}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"{told}. Do it?", err=True)):
        raise InputError("not-confirmed", f"not confirmed: {told}", "To do it, add --yes.")
    return verbs.ask(asked)


def reach_of(touches: dict[str, Any]) -> str:
    """Return a blast radius in words."""
    named = ", ".join(touches["devices"][:NAMED])
    more = ", …" if touches["device_count"] > NAMED else ""
    count, certificates = touches["device_count"], touches.get("certificates", ())
    words = [f"{_counted(count, 'device')}" + (f" ({named}{more})" if named else "")]
    if certificates:
        words = [f"{_counted(len(certificates), 'certificate')} ({', '.join(certificates)})"]
    for noun in ("releases", "rounds"):
        if touches[noun]:
            one = noun if len(touches[noun]) > 1 else noun[:-1]
            words.append(f"{one} {', '.join(map(str, touches[noun]))}")
    return "; ".join(words)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""The trace of a run: found by its name, kept in the run's folder, accounted for at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet.config import RunConfig
from fleet.files import write_text
from fleet.har.virtual import VirtualFleet
from server.store import RunFolder
from simulations.traces.account import account_of
from simulations.traces.field import Field
from simulations.traces.trace import parse_trace, trace_text

__all__ = ["account_for", "field_of", "keep_trace"]

TRACE_FILE = "trace.toml"


def field_of(config: RunConfig) -> Field | None:
    """Return the devices of a run's trace, or None where it has none.

    Raises:
        InputError: ``unknown-trace`` or ``bad-trace``.
    """
    if not config.trace:
        return None
    # The file may have changed since the run began, so what counts is the run's own copy.
    kept = Path(config.out) / TRACE_FILE
    begun = kept.exists() and (kept.parent / "run.json").exists()
    text = trace_text(str(kept) if begun else config.trace)
    return Field(parse_trace(text, config.trace), config.seed)


def keep_trace(config: RunConfig) -> None:
    """Copy a run's trace into its folder."""
    if config.trace:
        write_text(Path(config.out) / TRACE_FILE, trace_text(config.trace))


def account_for(
    field: Field, fleet: VirtualFleet, folder: RunFolder, target_f1: float
) -> dict[str, Any]:
    """Account for a method of a run, see :func:`~simulations.traces.account.account_of`."""
    partitions = {fleet.name(each): each for each in range(len(fleet))}
    return account_of(
        folder.rounds(),
        folder.abandoned(),
        folder.evaluations(),
        target_f1,
        lambda device, at: field.online(partitions[device], at),
    )

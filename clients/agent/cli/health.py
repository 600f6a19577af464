"""``fleet-device status | doctor``: what is known of a device, and whether it can do its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.agent.cli.own import read_store, standing_of
from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit
from clients.agent.config import DECISIONS_FILE, PUBLIC_KEY, DeviceConfig, load_config
from clients.agent.decisions import DecisionLog
from clients.agent.pinned import pinned_keys, refusals_of
from clients.agent.supervise.plan import PROGRAM
from fleet.errors import FleetError, InputError
from fleet.supervise.record import standing, standing_line

if TYPE_CHECKING:
    from rich.console import Console

    from clients.agent.doctor import Finding
    from clients.agent.serving.folder import ModelFolder
    from clients.agent.store import Store

__all__ = ["doctor", "status"]

STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def status(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Say what the state directory tells: device, what runs, served release, windows, decision.

    Nothing is changed, and no process is asked; what is not known is left out or null.
    """
    state = state.expanduser()
    config = load_config(state)
    data: dict[str, Any] = {
        "name": config.name,
        "state": str(state),
        "server": config.server,
        "has_key": (state / PUBLIC_KEY).is_file(),
        "run": standing(state),
        "served": _served(state),
        "releases": _trusted(config, state),
        **_stored(config, state),
        "last_decision": DecisionLog(state / DECISIONS_FILE).last(),
    }
    emit(data, form, lambda console: _show_status(console, data))


status.examples = (  # type: ignore[attr-defined]  # the root prints it under the help
    "Examples:\n\nfleet-device status\n\nfleet-device status --format json"
)


def doctor(
    state: StateOption = DEFAULT_STATE,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Name of a check; may be repeated.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A warning ends with exit code 1 as well.")
    ] = False,
    form: FormatOption = Format.table,
) -> int:
    """Check the device: each finding with its detail and, where something is wrong, a fix.

    The exit code is 1 when a check failed; a warning leaves it at 0 unless --strict is given.
    """
    from clients.agent.doctor import CHECKS, Result, examine, subject_of, worst

    known = [check.name for check in CHECKS]
    strange = sorted(set(only or ()) - set(known))
    if strange:
        raise InputError(
            "unknown-check",
            f"there is no check {', '.join(strange)}",
            f"The checks: {', '.join(known)}",
        )
    findings = examine(subject_of(state.expanduser()), only=only or ())
    verdict = worst(findings)
    data = {"verdict": verdict.value, "findings": [each.record() for each in findings]}
    emit(data, form, lambda console: _show_findings(console, findings))
    return 1 if verdict is Result.fail or (strict and verdict is Result.warn) else 0


doctor.examples = (  # type: ignore[attr-defined]
    "Examples:\n\nfleet-device doctor\n\nfleet-device doctor --only clock --only server"
    "\n\nfleet-device doctor --only agent --strict"
)


def _served(state: Path) -> dict[str, Any] | None:
    """Return the pointer to the served model; torch is not needed to read it."""
    from clients.agent.doctor.integrity import SERVING, present

    if not present(SERVING):
        return None
    from clients.agent.serving.folder import CURRENT, ModelFolder

    pointer = ModelFolder(state).readable_pointer(CURRENT)
    return None if pointer is None else pointer.model_dump(mode="json")


def _trusted(config: DeviceConfig, state: Path) -> dict[str, Any]:
    try:
        keys = list(pinned_keys(config, state))
    except FleetError as error:
        return {"keys": [], "problem": error.message, "unsigned": None}
    return {"keys": keys, "problem": None, "unsigned": _unsigned(state, keys)}


def _unsigned(state: Path, keys: list[str]) -> int | None:
    """Return the served release's number where none of the keys signed it."""
    from clients.agent.doctor.integrity import SERVING, present

    if not present(SERVING):
        return None
    from clients.agent.serving.signer import served_unsigned

    return served_unsigned(state, keys)


def _stored(config: DeviceConfig, state: Path) -> dict[str, Any]:
    """Return what the store tells; None each where there is none."""
    from clients.agent.doctor.integrity import STORE, present

    if not present(STORE):
        return {"personal": None, "statistics": None, "pseudo_labels": None, "store": None}
    from clients.agent.calibrating.summary import standing as statistics_standing
    from clients.agent.private.summary import standing as personal_standing
    from clients.agent.pseudo.summary import standing as pseudo_standing

    return {
        "personal": _own(state, personal_standing, config.personal.on),
        "statistics": _own(state, statistics_standing, config.statistics.own),
        "pseudo_labels": _own(state, pseudo_standing, config.pseudo_labels.on),
        "store": _counts(config, state),
    }


def _own(
    state: Path, standing: Callable[[Store, ModelFolder, bool], dict[str, Any]], on: bool
) -> dict[str, Any] | None:
    try:
        return standing_of(state, standing, on)
    except FleetError:  # the row of the store says what is wrong
        return None


def _counts(config: DeviceConfig, state: Path) -> dict[str, Any] | None:
    try:
        return read_store(state, lambda store: _counted(store, config))
    except FleetError as error:
        return {"problem": error.message}


def _counted(store: Store, config: DeviceConfig) -> dict[str, Any]:
    from clients.agent.drifting.showing import shown

    counts = store.windows.counts()
    labels = sorted({label for _, label in counts if label is not None})
    return {
        "windows": sum(counts.values()),
        "labelled": sum(n for (_, label), n in counts.items() if label is not None),
        "by_label": {
            label: sum(n for (_, own), n in counts.items() if own == label) for label in labels
        },
        "bytes": store.windows.bytes(),
        "counters": store.counters.all(),
        "drift": shown(store, config.drift, time.time()),
    }


def _show_status(console: Console, data: dict[str, Any]) -> None:
    served, store, last = data["served"], data["store"], data["last_decision"]
    rows = {
        "device": data["name"],
        "state": data["state"],
        "server": data["server"] or "none yet",
        "running": standing_line(data["run"], PROGRAM),
        "key": "there" if data["has_key"] else "none: fleet-device init",
        "serves": f"release {served['number']}, {served['digest'][:12]}…" if served else "nothing",
        **_own_lines(data),
        "release key": _trust_line(data["releases"], store),
        "store": _store_line(store),
        "drift": _drift_line(store),
        "last decision": _decision_line(last),
    }
    for key, value in rows.items():
        console.print(f"{key:<14} {value}", markup=False, soft_wrap=True)


def _own_lines(data: dict[str, Any]) -> dict[str, str]:
    lines = {"private core": "none yet", "statistics": "none yet", "pseudo-labels": "none yet"}
    if data["personal"] is not None:
        from clients.agent.private.summary import line as personal_line

        lines["private core"] = personal_line(data["personal"])
    if data["statistics"] is not None:
        from clients.agent.calibrating.summary import line as statistics_line

        lines["statistics"] = statistics_line(data["statistics"])
    if data["pseudo_labels"] is not None:
        from clients.agent.pseudo.summary import line as pseudo_line

        lines["pseudo-labels"] = pseudo_line(data["pseudo_labels"])
    return lines


def _trust_line(found: dict[str, Any], store: dict[str, Any] | None) -> str:
    if found["problem"]:
        line = f"no release is taken: {found['problem']}"
    else:
        line = " or ".join(found["keys"]) or "none: releases are not verified"
    if found["unsigned"] is not None:
        line += f"; release {found['unsigned']}, which is served, was signed by none of them"
        line += " (see: fleet-device doctor)"
    refused = refusals_of((store or {}).get("counters", {}))
    told = ", ".join(f"{reason} {count}" for reason, count in refused.items())
    return f"{line}; refused so far: {told}" if told else line


def _store_line(store: dict[str, Any] | None) -> str:
    if store is None:
        return "none yet"
    if "problem" in store:
        return str(store["problem"])
    return f"{store['windows']} windows, {store['labelled']} with a label, {store['bytes']} bytes"


def _drift_line(store: dict[str, Any] | None) -> str:
    if store is None or "drift" not in store:
        return "nothing yet"
    from clients.agent.drifting.showing import line_of

    return line_of(store["drift"])


def _decision_line(last: dict[str, Any] | None) -> str:
    if last is None:
        return "none yet"
    why = ", ".join(map(str, last.get("reasons") or ())) or "may train"
    return f"{last.get('at', '')}: {why}"


def _show_findings(console: Console, findings: list[Finding]) -> None:
    from rich.text import Text

    for finding in findings:
        word = finding.result.value
        line = Text.assemble((f"{word:<5}", STYLES[word]), f"{finding.check:<12} {finding.detail}")
        console.print(line, soft_wrap=True)
        if finding.fix:
            console.print(Text(f"{'':<18}{finding.fix}"), soft_wrap=True)

"""What a run came to, read from its folder: final scores and the way there, for each method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import StorageError
from server.store import RunFolder, read_json

__all__ = ["Result", "RoundPoint", "read_result"]


@dataclass(frozen=True)
class RoundPoint:
    """One round of one method, or its start (round 0).

    Args:
        round: Number; 0 is before the first.
        macro_f1: Pooled macro-F1 after it, in [0, 1]; None where it was not evaluated.
        macro_f1_devices_mean: Mean of the devices' own.
        macro_f1_devices_worst_decile: Mean of the worst tenth of devices.
        bytes_up: Packed arrays that all devices sent in this round, in bytes.
        bytes_down: Packed arrays that were sent to them.
        wire_bytes_up: All objects and framing of what they sent.
        wire_bytes_down: All objects and framing of what was sent to them.
        accepted: Updates that entered the mean.
        refused: Updates that did not.
        seconds: From the opening of the round to its close, by the run's own (simulated) clock.
        digest: Of the release; empty where there is none.
    """

    round: int
    macro_f1: float | None
    macro_f1_devices_mean: float | None
    macro_f1_devices_worst_decile: float | None
    bytes_up: int
    bytes_down: int
    wire_bytes_up: int
    wire_bytes_down: int
    accepted: int
    refused: int
    seconds: float
    digest: str


@dataclass(frozen=True)
class Result:
    """What one method of a run came to.

    Args:
        method: Its name.
        macro_f1: Pooled macro-F1 at the end, in [0, 1]; None where nothing was judged.
        macro_f1_devices_mean: Mean of the devices' own.
        macro_f1_devices_worst_decile: Mean of the worst tenth of devices.
        trained_parameters: Numbers that a device trains.
        learning_rate: Given, or chosen by a rehearsal.
        bytes_up: Packed array per device and round, in bytes.
        bytes_down: The same towards the device.
        wire_bytes_up: With all objects and framing.
        wire_bytes_down: The same towards the device.
        refused: Updates that were refused, all rounds.
        seconds: Wall time; of a run that was interrupted, since it was taken up last.
        digest: Of the last release; empty for local-only.
        base_digest: Of the base.
        hours: Simulated hours to the end of the last round; None without a trace.
        hours_to_target: Simulated hours to ``target-f1``; None where it was not reached or asked.
        rounds: The way there, ascending.
    """

    method: str
    macro_f1: float | None
    macro_f1_devices_mean: float | None
    macro_f1_devices_worst_decile: float | None
    trained_parameters: int
    learning_rate: float
    bytes_up: int
    bytes_down: int
    wire_bytes_up: int
    wire_bytes_down: int
    refused: int
    seconds: float
    digest: str
    base_digest: str
    hours: float | None
    hours_to_target: float | None
    rounds: tuple[RoundPoint, ...]


SCORES = ("macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile")
TRAFFIC = ("bytes_up", "bytes_down", "wire_bytes_up", "wire_bytes_down")
DIGEST = re.compile(r"[0-9a-f]{64}")


def read_result(folder: Path, method: str, base_digest: str) -> Result:
    """Read what a finished method of a run came to.

    Args:
        folder: The run's folder.
        method: Method whose ``summary.json`` is there.
        base_digest: Digest of the run's base.

    Raises:
        StorageError: ``json-damaged`` or ``run-damaged``.
    """
    kept = RunFolder(folder / method)
    summary = read_json(folder / method / "summary.json")
    evaluations = {int(e["release"]): e for e in kept.evaluations()}
    records = {int(record["round"]): record for record in kept.rounds()}
    release, field = summary["release"], summary.get("field", {})
    return Result(
        method=method,
        **{name: summary[name] for name in (*SCORES, *TRAFFIC)},
        trained_parameters=int(summary["trained_parameters"]),
        learning_rate=float(summary["learning_rate"]),
        refused=int(summary["refused"]),
        seconds=float(summary["seconds"]),
        digest=_digest(release["digest"], kept.folder) if release else "",
        base_digest=_digest(base_digest, folder),
        hours=field.get("hours"),
        hours_to_target=field.get("hours_to_target"),
        rounds=tuple(
            _point(number, records.get(number), evaluations.get(number), kept.folder)
            for number in sorted({*records, *evaluations})
        ),
    )


def _digest(found: object, folder: Path) -> str:
    """Return a digest of a folder that may come from somebody else."""
    if not isinstance(found, str) or DIGEST.fullmatch(found) is None:
        raise StorageError(
            "run-damaged",
            f"{folder} gives {found!r:.100} as a digest, which has 64 hexadecimal digits",
            "Run it again, or leave it out of the report.",
        )
    return found


def _point(
    number: int,
    record: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    folder: Path,
) -> RoundPoint:
    scores: dict[str, float | None] = {n: evaluation[n] if evaluation else None for n in SCORES}
    traffic: dict[str, int] = {n: record["traffic"][n] if record else 0 for n in TRAFFIC}
    release = record["release"] if record else None
    return RoundPoint(
        round=number,
        macro_f1=scores["macro_f1"],
        macro_f1_devices_mean=scores["macro_f1_devices_mean"],
        macro_f1_devices_worst_decile=scores["macro_f1_devices_worst_decile"],
        **traffic,
        accepted=len(record["accepted"]) if record else 0,
        refused=len(record["refused"]) if record else 0,
        seconds=float(record["closed_at_s"] - record["opened_at_s"]) if record else 0.0,
        digest=_digest(release[1], folder) if release else "",
    )

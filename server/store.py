"""A run's folder: releases, round records and evaluations, each written whole or not at all.

    DIR/releases/000001.safetensors   DIR/rounds/000001.json   DIR/evaluations/000001.json
    DIR/served/000001.json             DIR/memory/000001.safetensors

A round counts once its record is there; the release, and what its rule remembers where it remembers
anything, are written before the record and the evaluation after it, so a run that was cut off goes
on from its last whole round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base
from fleet.errors import MismatchError, StorageError
from fleet.federate.releases import Release, load_release, save_release
from fleet.federate.rule import RuleSpec
from fleet.files import write_json
from fleet.measure.f1 import macro_f1_present, score_fleet
from server.coordinator import Refusal, RoundRecord
from server.rounds import Reports, Traffic
from server.rules.memory import NOTHING, Memory, load_memory, save_memory

__all__ = ["RunFolder", "read_json"]

OnRound = Callable[[int, float], None]
OnAnswer = Callable[[int, str, int], None]


class RunFolder:
    """Keeps one method's run in a folder; a :class:`server.rounds.Sink`.

    Args:
        folder: Where; made when needed.
        on_answer: Called with round, device and cohort size at each answer.
        on_evaluation: Called with the release's number and its pooled macro-F1.
        on_publish: Called with the round's number and its traffic.
        clock: Simulated seconds, kept with each evaluation so that a run can go on from there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_answer: OnAnswer | None = None,
        on_evaluation: OnRound | None = None,
        on_publish: Callable[[int, Traffic], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._on_answer = on_answer
        self._on_evaluation = on_evaluation
        self._on_publish = on_publish

    def publish(self, record: RoundRecord, release: Release | None, traffic: Traffic) -> None:
        """Keep a round's release and record."""
        if release is not None:
            save_release(release, self._release(release.number))
            if record.memory.steps:
                save_memory(record.memory, release.digest, self._memory(release.number))
        content = _plain(record) | {
            "release": None if release is None else [release.number, release.digest],
            "traffic": asdict(traffic),
        }
        name = f"{record.round:06d}" if record.released else f"{record.round:06d}-abandoned"
        write_json(self.folder / "rounds" / f"{name}.json", content)
        if self._on_publish is not None and release is not None:
            self._on_publish(record.round, traffic)

    def evaluated(self, release: Release, results: Mapping[str, NDArray[np.int64]]) -> None:
        """Keep the devices' confusion counts under a release."""
        self.keep_evaluation(release.number, release.digest, results)

    def keep_evaluation(
        self, number: int, digest: str, results: Mapping[str, NDArray[np.int64]]
    ) -> None:
        """Keep confusion counts by device under a number; ``digest`` may be empty."""
        score = score_fleet(list(results.values()))
        content: dict[str, Any] = {
            "release": number,
            "digest": digest,
            "macro_f1": _number(score.pooled),
            "macro_f1_devices_mean": _number(score.devices_mean),
            "macro_f1_devices_worst_decile": _number(score.worst_decile),
            "devices": {
                device: {
                    "macro_f1": _number(macro_f1_present(counts)),
                    "confusion": counts.tolist(),
                }
                for device, counts in sorted(results.items())
            },
        }
        if self._clock is not None:
            content["at_s"] = self._clock()
        write_json(self.folder / "evaluations" / f"{number:06d}.json", content)
        if self._on_evaluation is not None:
            self._on_evaluation(number, score.pooled)

    def served(self, release: Release, reports: Reports) -> None:
        """Keep what devices that were told to serve a release serve, or why they do not.

        What a device that is not among them said of this release before stays.
        """
        before = self.serving(release.number) or {}
        kept = before.get("devices", {}) if before.get("digest") == release.digest else {}
        devices = {
            device: {"refused": report}
            if isinstance(report, str)
            else {"serves": report.serves, "release": report.release, "version": report.version}
            for device, report in reports.items()
        }
        devices = dict(sorted({**kept, **devices}.items()))
        content = {"release": release.number, "digest": release.digest, "devices": devices}
        write_json(self.folder / "served" / f"{release.number:06d}.json", content)

    def answered(self, round_number: int, device: str, of: int) -> None:
        """Pass a device's answer on to the progress display."""
        if self._on_answer is not None:
            self._on_answer(round_number, device, of)

    def last_release(self, base: Base) -> Release | None:
        """Return the release of the last whole round, or None before the first.

        Raises:
            MismatchError: ``other-base`` when the folder belongs to another base.
        """
        numbers = self.round_numbers()
        if not numbers:
            return None
        release = load_release(self._release(numbers[-1]))
        if release.base != base.digest:
            raise MismatchError(
                "other-base",
                f"{self.folder} holds releases of base {release.base[:12]}…, this run has base "
                f"{base.digest[:12]}…",
                "Choose another folder with --out.",
            )
        return release

    def memory(self, release: Release, rule: RuleSpec) -> Memory:
        """Return what a rule remembered when it made a release.

        That is nothing where the release was made by another rule, or by none.

        Raises:
            StorageError: ``bundle-missing``, ``bundle-damaged`` or ``memory-damaged``.
            MismatchError: ``bundle-format`` or ``other-memory``.
        """
        made_by = release.provenance.get("rule")
        own = isinstance(made_by, dict) and rule.record.items() <= made_by.items()
        if not rule.remembers or not own:
            return NOTHING
        return load_memory(self._memory(release.number), release.digest)

    def round_numbers(self) -> list[int]:
        """Return the numbers of all whole rounds, ascending."""
        found = (self.folder / "rounds").glob("[0-9]*.json")
        return sorted(int(p.stem) for p in found if p.stem.isdigit())

    def rounds(self) -> list[dict[str, Any]]:
        """Return the records of all whole rounds, in order."""
        return [read_json(self.folder / "rounds" / f"{n:06d}.json") for n in self.round_numbers()]

    def abandoned(self) -> list[dict[str, Any]]:
        """Return the last abandoned try of each round that has one, by round."""
        paths = sorted((self.folder / "rounds").glob("[0-9]*-abandoned.json"))
        return [read_json(path) for path in paths]

    def reached_at_s(self) -> float:
        """Return the simulated time from which a run goes on; 0 before its first whole round."""
        numbers = self.round_numbers()
        if not numbers:
            return 0.0
        record = read_json(self.folder / "rounds" / f"{numbers[-1]:06d}.json")
        evaluation = self.evaluation(numbers[-1]) or {}
        return float(evaluation.get("at_s", record["closed_at_s"]))

    def evaluation(self, number: int) -> dict[str, Any] | None:
        """Return the evaluation of a release, or None when it has none."""
        path = self.folder / "evaluations" / f"{number:06d}.json"
        return read_json(path) if path.exists() else None

    def evaluations(self) -> list[dict[str, Any]]:
        """Return all evaluations, by release number."""
        paths = sorted((self.folder / "evaluations").glob("[0-9]*.json"))
        return [read_json(path) for path in paths]

    def serving(self, number: int) -> dict[str, Any] | None:
        """Return what devices said that they serve after a release, or None if none was told."""
        path = self.folder / "served" / f"{number:06d}.json"
        return read_json(path) if path.exists() else None

    def _memory(self, number: int) -> Path:
        return self.folder / "memory" / f"{number:06d}.safetensors"

    def _release(self, number: int) -> Path:
        return self.folder / "releases" / f"{number:06d}.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StorageError: ``json-damaged`` when it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError("json-damaged", f"{path} cannot be read: {error}", "") from error
    if not isinstance(content, dict):
        raise StorageError("json-damaged", f"{path} holds no JSON object", "")
    return content


def _plain(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "plan_id": record.plan.id,
        "plan": record.plan.model_dump(mode="json"),
        "selected": list(record.selected),
        "accepted": [dict(a) for a in record.accepted],
        "refused": [_refusal(each) for each in record.refused],
        "late": [_refusal(each) for each in record.late],
        "opened_at_s": record.opened_at_s,
        "closed_at_s": record.closed_at_s,
        "rule": dict(record.rule),
        "reason": record.reason,
    }


def _refusal(refusal: Refusal) -> dict[str, str]:
    return {"device": refusal.device, "reason": refusal.reason.value, "detail": refusal.detail}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)

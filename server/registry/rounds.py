"""Rounds: opened once, answered one update at a time, closed together with their release.

    open ──accept, refuse (each its own transaction)──► release (release + round: one transaction)
                                                    └─► abandon ─► open (the next attempt)

A crash leaves the round open with what was accepted; :meth:`Rounds.open_round` hands it to the next
coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from fleet.errors import InputError, MismatchError
from fleet.federate.admission import Admitted
from fleet.federate.records import Plan
from fleet.federate.releases import Release
from fleet.federate.wire import Payload
from server.registry import tables
from server.registry.absences import Absence, absences_of, keep_absences
from server.registry.answers import (
    check_eligible,
    keep_refusal,
    keep_update,
    refusals_of,
    updates_of,
)
from server.registry.ledger import Ledger, Outcome, canonical
from server.registry.memories import insert_memory
from server.registry.records import (
    OpenRound,
    RefusalRow,
    RoundRow,
    RoundState,
    UpdateRow,
)
from server.registry.releases import insert_promotion, insert_release
from server.registry.rows import checked_release, cleaned, done, rounds_of
from server.registry.turns import (
    attempt_of,
    check_none_open,
    check_start,
    close_round,
    one_round,
    open_now,
    subject_of,
)
from server.rules.memory import NOTHING, Memory

__all__ = ["LARGEST_PAGE", "Rounds"]

LARGEST_PAGE = 1000
"""Rounds of one answer."""


class Rounds:
    """The rounds of a registry. Every change names its ``actor`` and may carry a ``key``.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def open(
        self,
        plan: Plan,
        selected: Iterable[str],
        *,
        rule: Mapping[str, Any],
        absent: Mapping[str, Absence] | None = None,
        actor: str,
        key: str | None = None,
    ) -> RoundRow:
        """Open a round: nothing is sent to a device before this has returned.

        Args:
            plan: What the cohort is asked; its round is the next one, or the last once more when
                that was abandoned.
            selected: The cohort.
            rule: How updates are aggregated, JSON.
            absent: Devices that are not asked, and why.
            actor: Who.
            key: Idempotency key.

        Raises:
            RoundError: ``round-open`` while another is, ``round-number`` out of order.
            MismatchError: ``wrong-release`` for a plan that starts from none of ours.
            InputError: ``no-such-release``, ``release-withdrawn``, ``empty-cohort`` or
                ``not-eligible``.
        """
        devices = sorted(set(selected))
        if not devices:
            raise InputError("empty-cohort", "a round asks at least one device")

        def work(connection: Connection) -> Outcome[RoundRow]:
            check_none_open(connection)
            attempt = attempt_of(connection, plan.round)
            check_start(connection, plan)
            check_eligible(connection, devices)
            now = self._ledger.clock()
            row = {
                "round": plan.round,
                "attempt": attempt,
                "plan_id": plan.id,
                "plan": canonical(plan.model_dump(mode="json")),
                "starts_from": plan.release,
                "rule": canonical(dict(rule)),
                "state": RoundState.open.value,
                "deadline_at_s": now + plan.deadline_s,
                **done("opened", now, actor),
            }
            connection.execute(insert(tables.rounds).values(**row))
            one = {"round": plan.round, "attempt": attempt}
            connection.execute(insert(tables.cohort), [{**one, "device": d} for d in devices])
            opened = one_round(connection, plan.round, attempt)
            keep_absences(connection, opened, absent or {})
            return Outcome(opened, subject_of(plan.round), {"attempt": attempt})

        asked = {"round": plan.round, "plan": plan.id, "devices": devices, "rule": dict(rule)}
        return self._ledger.change("round.open", asked, work, RoundRow, actor=actor, key=key)

    def accept(
        self,
        number: int,
        admitted: Admitted,
        payload: Payload,
        *,
        actor: str,
        key: str | None = None,
    ) -> bool:
        """Keep an admitted update of the open round; it is acknowledged once this has returned.

        Args:
            number: The round.
            admitted: What admission made of it.
            payload: The update as it came.
            actor: Who.
            key: Idempotency key; a second update of a device changes nothing without one, too.

        Returns:
            False when the device's update was kept before.

        Raises:
            RoundError: ``round-closed``.
            MismatchError: ``wrong-plan``.
            InputError: ``not-selected`` or ``not-eligible``.
        """
        device = admitted.header.device

        def work(connection: Connection) -> Outcome[bool]:
            row = open_now(connection, number)
            now = self._ledger.clock()
            kept = keep_update(connection, row, admitted, payload, now)
            return Outcome(kept, subject_of(number), {"attempt": row.attempt}, changed=kept)

        asked = {"round": number, "device": device, "digest": admitted.digest}
        asked |= {"weight": admitted.weight}
        return self._ledger.change("update.accept", asked, work, bool, actor=actor, key=key)

    def refuse(
        self, number: int, refusal: RefusalRow, *, actor: str, key: str | None = None
    ) -> bool:
        """Keep why a device has no update in the open round.

        Returns:
            False when that was kept before, or the round has too many refusals.

        Raises:
            RoundError: ``round-closed``.
        """

        def work(connection: Connection) -> Outcome[bool]:
            row = open_now(connection, number)
            kept = keep_refusal(connection, row, refusal)
            return Outcome(kept, subject_of(number), {"attempt": row.attempt}, changed=kept)

        asked = {"round": number, "device": cleaned(refusal.device)}
        asked |= {"reason": refusal.reason.value, "earlier": refusal.earlier}
        return self._ledger.change("update.refuse", asked, work, bool, actor=actor, key=key)

    def release(
        self,
        number: int,
        release: Release,
        *,
        memory: Memory = NOTHING,
        refused: Iterable[RefusalRow] = (),
        signature: bytes | None = None,
        promote: bool = True,
        traffic: Mapping[str, Any] | None = None,
        actor: str,
        key: str | None = None,
    ) -> RoundRow:
        """Close the open round with the release that it made, in one transaction.

        Args:
            number: The round.
            release: The aggregate of its accepted updates.
            memory: What the rule remembers for a round that starts from it.
            refused: Devices that have no update, and why; kept before or not.
            signature: Of the release's digest.
            promote: Make it the fleet's at once.
            traffic: Bytes and messages, JSON.
            actor: Who.
            key: Idempotency key.

        Raises:
            RoundError: ``round-closed``.
            MismatchError: ``release-number`` or ``wrong-parent`` for a release that does not
                continue the one that the round started from.
        """

        def work(connection: Connection) -> Outcome[RoundRow]:
            row = open_now(connection, number)
            start = checked_release(connection, row.plan.release)
            if release.parent != start.digest:
                raise MismatchError(
                    "wrong-parent",
                    f"round {number} started from {start.digest[:12]}…, the release continues "
                    f"{release.parent[:12]}…",
                )
            now = self._ledger.clock()
            insert_release(connection, release, signature, done("created", now, actor))
            if memory.steps:
                insert_memory(connection, release.number, memory)
            if promote:
                insert_promotion(connection, release.number, now, actor, f"round {number}")
            for refusal in refused:
                keep_refusal(connection, row, refusal)
            values = {"release": release.number, "traffic": canonical(dict(traffic or {}))}
            closed = close_round(connection, row, RoundState.released, values, (now, actor, ""))
            detail = {"attempt": row.attempt, "promoted": promote}
            return Outcome(closed, subject_of(number), detail)

        asked = {"round": number, "release": release.number, "digest": release.digest}
        return self._ledger.change("round.release", asked, work, RoundRow, actor=actor, key=key)

    def abandon(
        self,
        number: int,
        *,
        why: str,
        refused: Iterable[RefusalRow] = (),
        traffic: Mapping[str, Any] | None = None,
        actor: str,
        key: str | None = None,
    ) -> RoundRow:
        """Close the open round without a release; its updates stay, and nothing uses them.

        Raises:
            RoundError: ``round-closed``.
        """

        def work(connection: Connection) -> Outcome[RoundRow]:
            row = open_now(connection, number)
            for refusal in refused:
                keep_refusal(connection, row, refusal)
            values = {"traffic": canonical(dict(traffic or {}))}
            by = (self._ledger.clock(), actor, why)
            closed = close_round(connection, row, RoundState.abandoned, values, by)
            return Outcome(closed, subject_of(number), {"attempt": row.attempt})

        asked = {"round": number, "why": cleaned(why)}
        return self._ledger.change("round.abandon", asked, work, RoundRow, actor=actor, key=key)

    def open_round(self) -> OpenRound | None:
        """Return the round that is open, with what was accepted and refused; None without one."""
        with self._ledger.database.read() as connection:
            found = rounds_of(connection, tables.rounds.c.state == RoundState.open.value)
            if not found:
                return None
            row = found[0]
            return OpenRound(row, updates_of(connection, row), refusals_of(connection, row))

    def get(self, number: int, attempt: int | None = None) -> RoundRow:
        """Return a round's last attempt, or the one that is asked for.

        Raises:
            InputError: ``no-such-round``.
        """
        with self._ledger.database.read() as connection:
            return one_round(connection, number, attempt)

    def all(self, newest: int = LARGEST_PAGE) -> tuple[RoundRow, ...]:
        """Return all attempts of the newest rounds, in order; at most :data:`LARGEST_PAGE` rounds.

        Raises:
            InputError: ``bad-page``.
        """
        if not 1 <= newest <= LARGEST_PAGE:
            raise InputError("bad-page", f"a page has 1 to {LARGEST_PAGE} rounds, not {newest}")
        kept = tables.rounds.c
        with self._ledger.database.read() as connection:
            last = int(connection.execute(select(func.max(kept.round))).scalar() or 0)
            return rounds_of(connection, kept.round > last - newest)

    def updates(self, number: int, attempt: int | None = None) -> tuple[UpdateRow, ...]:
        """Return a round's accepted updates, by device.

        Raises:
            InputError: ``no-such-round``.
            StorageError: ``update-damaged``.
        """
        with self._ledger.database.read() as connection:
            return updates_of(connection, one_round(connection, number, attempt))

    def refusals(self, number: int, attempt: int | None = None) -> tuple[RefusalRow, ...]:
        """Return why devices have no update in a round, in the order in which it was known.

        Raises:
            InputError: ``no-such-round``.
        """
        with self._ledger.database.read() as connection:
            return refusals_of(connection, one_round(connection, number, attempt))

    def absences(self, number: int, attempt: int | None = None) -> dict[str, Absence]:
        """Return who was not asked in a round and why, by device.

        Raises:
            InputError: ``no-such-round``.
        """
        with self._ledger.database.read() as connection:
            return absences_of(connection, one_round(connection, number, attempt))

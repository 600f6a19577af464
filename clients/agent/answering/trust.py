"""Trust: only releases that a pinned key signed are trained from, judged or served.

Laws (tests/clients/agent/answering, test_trust.py and test_signed_plans.py): with a key pinned, a
flipped bit of signature, key, content, number or parent is refused, and nothing of it is kept; so
is any other field of a plan, which has a signature of its own; what was verified once is taken
again without a signature, also after a restart; without a key everything is as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from clients.agent.answering.held import Held
from clients.agent.answering.world import World
from clients.agent.config import DeviceConfig
from clients.agent.pinned import COUNTED, REFUSED, pinned_keys
from clients.agent.serving.kept import KeptRelease
from fleet.errors import FleetError, MismatchError, StorageError
from fleet.federate.proof import Proof, plan_signer, proof_of
from fleet.federate.releases import Release

__all__ = ["BAD", "BAD_PLAN", "UNSIGNED", "UNSIGNED_PLAN", "Trust"]

UNSIGNED, BAD = "unsigned-release", "bad-signature"
UNSIGNED_PLAN, BAD_PLAN = "unsigned-plan", "bad-plan-signature"


class Trust:
    """Verifies whose releases are.

    Args:
        held: State directory, store and models.
        config: Reads the device's configuration: who pins another key need not start the agent
            again.
        world: Its clock, and who is told of refusals.
    """

    def __init__(self, held: Held, config: Callable[[], DeviceConfig], world: World) -> None:
        self._held = held
        self._config = config
        self._world = world

    @property
    def wanted(self) -> bool:
        """Whether releases are to be verified."""
        return bool(self._config().release_key)

    def vouch(self, release: KeptRelease, message: Mapping[str, Any]) -> KeptRelease:
        """Verify a release that a message brought.

        Args:
            release: What came, with the digest of its state recomputed.
            message: The message's config, with the proof in it.

        Returns:
            The release with what is known of it now; as it came where no key is pinned.

        Raises:
            MismatchError: ``unsigned-release``, ``bad-signature`` or ``signature-format``; of a
                plan ``unsigned-plan`` or ``bad-plan-signature`` as well.
            InputError: ``release-key-missing`` or ``release-key`` when none can be verified.
        """
        try:
            keys = pinned_keys(self._config(), self._held.state)
            known = self._verified(release, proof_of(message), keys) if keys else release
            if keys and "plan" in message:
                _check_plan(message, keys)
        except FleetError as error:
            self._refused(release, error)
            raise
        self._taken()
        return known

    def check(self, release: KeptRelease) -> None:
        """Refuse a release as the store gave it, unless a key signed it which is pinned now.

        Nobody sent it, so nothing is counted: it is asked again and again while it is wanted.

        Raises:
            MismatchError: ``unsigned-release``.
            InputError: As :meth:`vouch`.
        """
        keys = pinned_keys(self._config(), self._held.state)
        if keys and self._moved(release) and release.signed_by not in keys:
            raise _unsigned(release, keys)

    def _moved(self, release: KeptRelease) -> bool:
        """Tell whether a release is anything but the base that the owner gave the device."""
        return release.moved or not self._held.serving.held.bases.is_first(release.base)

    def _verified(
        self, release: KeptRelease, proof: Proof | None, keys: Mapping[str, bytes]
    ) -> KeptRelease:
        if not self._moved(release):
            return release
        if proof is None:
            stored = self._held.serving.stored(release)
            if stored is not None and stored.signed_by in keys:
                return stored
            raise _unsigned(release, keys)
        # Of all that names a release only the parent is taken on trust; a wrong one fails, too.
        named = Release(
            release.number,
            release.base,
            release.frame,
            proof.parent,
            release.method,
            release.state,
        )
        signer = proof.signer(named, keys)
        if not signer:
            raise MismatchError(
                BAD,
                f"the signature of release {release.number} is not of this content by "
                f"{_names(keys)}",
                "If the server's key was changed: fleet-device trust release-key.pub",
            )
        return replace(release, published=named.digest, signed_by=signer)

    def _taken(self) -> None:
        """Forget the last refusal: what came after it was taken."""
        state = self._held.store.state
        try:
            if state.get(REFUSED) is not None:
                state.put(REFUSED, None)
        except StorageError as full:  # it is taken all the same
            self._world.say("store.refused", reason=full.code, detail=full.message)

    def _refused(self, release: KeptRelease, error: FleetError) -> None:
        record = {
            "number": release.number,
            "reason": error.code,
            "detail": error.message,
            "at_s": self._world.now(),
        }
        self._world.say("release.refused", **record)
        store = self._held.store
        try:
            with store.transaction():
                store.counters.add({f"{COUNTED}{error.code}": 1})
                store.state.put(REFUSED, record)
        except StorageError as full:  # it is refused all the same
            self._world.say("store.refused", reason=full.code, detail=full.message)


def _unsigned(release: KeptRelease, keys: Mapping[str, bytes]) -> MismatchError:
    return MismatchError(
        UNSIGNED,
        f"release {release.number} came without a signature, and this device serves what "
        f"{_names(keys)} signed",
        "Upgrade the server if it is older than signatures, and give it a release-key.",
    )


def _check_plan(message: Mapping[str, Any], keys: Mapping[str, bytes]) -> None:
    signer = plan_signer(message, keys)
    if signer is None:
        raise MismatchError(
            UNSIGNED_PLAN,
            f"a plan came without a signature, and this device trains by plans of {_names(keys)}",
            "Upgrade the server if it is older than signed plans, and give it a release-key.",
        )
    if not signer:
        raise MismatchError(
            BAD_PLAN,
            f"the signature of a plan is not of this plan by {_names(keys)}",
            "If the server's key was changed: fleet-device trust release-key.pub",
        )


def _names(keys: Mapping[str, bytes]) -> str:
    return f"the pinned key {' or '.join(keys)}"

"""Serving: take releases, merge them canonically, verify, probe, swap; go back when it fails.

    install_base → take → promote (merge → write → read back → probe → swap) → recover at start-up

Laws (tests/clients/agent/serving): however many releases a device missed, one message brings it to
the digest of a device that saw all; going back returns the same digest, since kernels are merged
from the immutable base every time; cut off at any file effect, what is served is whole, verified,
and one of old and new.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from clients.agent.serving.folder import CURRENT, LAST_GOOD, LOCK_WAIT_S, ModelFolder
from clients.agent.serving.held import Held
from clients.agent.serving.kept import KeptRelease, load_kept, save_kept
from clients.agent.serving.probe import Probe, judge
from clients.agent.serving.records import Pointer, ProbeReading, Promotion
from clients.agent.serving.whole import Found, open_best
from fleet.adapt.base import load_base
from fleet.errors import FleetError, InputError, MismatchError, StorageError
from fleet.federate.records import Plan
from fleet.federate.releases import Release, base_with
from fleet.federate.wire import Payload, decode_state

__all__ = ["KEEP_RELEASES", "Serving"]

KEEP_RELEASES = 8
Vouch = Callable[[KeptRelease], KeptRelease]


def _as_it_came(release: KeptRelease) -> KeptRelease:
    return release


class Serving:
    """What one device serves; the only writer of ``STATE/model``, one process at a time.

    Args:
        state_dir: The device's state directory.
        keep: Releases kept to go back to; the two that are named are kept in any case.
        lock_wait_s: How long to wait for another process that is changing the folder.
    """

    def __init__(
        self, state_dir: Path, *, keep: int = KEEP_RELEASES, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        if keep < 1:
            raise InputError("keep-releases", f"at least one release is kept, not {keep}")
        self.folder = ModelFolder(state_dir)
        self._keep = keep
        self._lock_wait_s = lock_wait_s
        self.held = Held(self.folder)

    @property
    def served(self) -> Pointer | None:
        """What ``current`` names; None before the first swap or when it is damaged."""
        return self.folder.readable_pointer(CURRENT)

    @property
    def last_good(self) -> Pointer | None:
        """What was served before ``current``."""
        return self.folder.readable_pointer(LAST_GOOD)

    def install_base(self, path: Path) -> Promotion:
        """Copy the first base into the state directory, once, and serve it.

        Doing it again with the same base changes nothing but what was cut off the first time.

        Raises:
            StorageError: When ``path`` is no whole base, or it could not be written or served.
            MismatchError: ``other-base`` when another one was first; see :meth:`add_base`.
        """
        base = load_base(path)
        self.folder.make()
        with self.locked():
            self.held.bases.install(base)
            if self.served is None:
                outcome = self._promote(KeptRelease.bare(base), None)
                if outcome.served is None:
                    raise StorageError(outcome.reason, outcome.detail, "Install it again.")
                return outcome
        return self._unchanged(KeptRelease.bare(base), "already-installed")

    def add_base(self, path: Path) -> bool:
        """Keep a further base, so that a release of it need not bring it; tells whether it is new.

        Nothing is served of it before such a release is. It goes again once another base was
        kept and no kept release is of it.

        Raises:
            StorageError: When ``path`` is no whole base, or it could not be written.
            MismatchError: ``base-unlike`` when it cannot take the place of the one in use.
        """
        base = load_base(path)
        self.held.bases.try_on(base)
        with self.locked():
            return self.held.bases.keep(base.digest)

    def take(self, release: Release) -> KeptRelease:
        """Keep a whole release; it is served only once it is promoted.

        Raises:
            MismatchError: ``base-missing``, ``wrong-frame`` or ``state-not-finite``.
            StorageError: When it could not be written.
        """
        return self._take(KeptRelease.of_release(release))

    def catch_up(self, message: Payload, method: str, vouch: Vouch = _as_it_came) -> KeptRelease:
        """Keep what a catch-up message brings: one core-sized array, whatever was missed.

        Args:
            message: The message; it may bring the base of its release along.
            method: What was trained.
            vouch: Verifies whose the release is before anything is kept; raises when it may not
                be. A release's signature covers its base's digest.

        Raises:
            MismatchError: ``base-missing``, ``base-unlike`` or ``wrong-bundle``; when the message
                is for another frame, layout or wire format.
            StorageError: When it could not be written.
        """
        return self._take(vouch(self.told(message, method)))

    def told(self, message: Payload, method: str) -> KeptRelease:
        """Read a message about a release and write nothing.

        Raises:
            MismatchError: As :meth:`catch_up`.
            StorageError: ``bundle-damaged`` or ``base-damaged``: what it brought is no base.
        """
        brought = base_with(message)
        if brought is not None:
            self.held.bases.try_on(brought)
        base = self.held.bases.opened(str(message.config.get("base"))).base
        return KeptRelease.of_message(message, base, self.held.layout(method, base), method)

    def take_plan(self, plan: Plan, message: Payload, vouch: Vouch = _as_it_came) -> KeptRelease:
        """Keep the release that a train message starts from.

        Args:
            plan: The message's plan.
            message: The message; its array is the release's core state.
            vouch: As of :meth:`catch_up`.

        Raises:
            MismatchError: When plan, state and base do not belong together.
            StorageError: When it could not be written.
        """
        state = decode_state(message, self.held.layout(plan.method))
        return self._take(vouch(KeptRelease.of_plan(plan, state)))

    def stored(self, release: KeptRelease) -> KeptRelease | None:
        """Return what is kept of a release with this very content; None when nothing is."""
        held = _readable(self.folder.release_file(release.name))
        return held if held is not None and held.same_content(release) else None

    def promote(self, release: KeptRelease, probe: Probe | None = None) -> Promotion:
        """Serve a release if it is whole and the probe lets it pass; else leave what is served.

        Args:
            release: From :meth:`take` and its like, or ``held.kept`` to go back.
            probe: Labelled windows held out; None skips the probe and says so.

        Returns:
            What became of it. Whatever fails on the way (disk, merge, verification, probe) is a
            reason there and no exception: what was served goes on being served.

        Raises:
            StorageError: ``no-model`` or ``model-busy``: nothing was tried.
        """
        with self.locked():
            return self._promote(release, probe)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for writing; see :meth:`ModelFolder.locked`."""
        return self.folder.locked(self._lock_wait_s)

    def _take(self, release: KeptRelease) -> KeptRelease:
        self.held.check_fits(release)
        with self.locked():
            self._check_name(release)
            self.held.bases.keep(release.base)
            path = self.folder.release_file(release.name)
            held = self.stored(release)
            # The same state may come again with less known of it, or with more.
            if held is not None and _knows(held, release):
                release = held
            else:
                save_kept(release, path)
            with suppress(OSError):
                self.folder.sweep_releases(self._keep, release.name)
                self._sweep_bases(release)
        return release

    def _check_name(self, release: KeptRelease) -> None:
        """Refuse another release in the files of one that is served.

        Of one registry no two have the same number. Of two, unmoved ones of two bases may.
        """
        for pointer in (self.served, self.last_good):
            if pointer is None or pointer.name != release.name:
                continue
            if (pointer.base or self.held.bases.first.digest) != release.base:
                raise MismatchError(
                    "release-number",
                    f"release {release.number} of base {release.base[:12]}… came, and this device "
                    "serves another one of that number and state",
                    "Make a release of a higher number on the server, e.g. by a round.",
                )

    def _sweep_bases(self, taken: KeptRelease) -> None:
        """Remove the bases of which no release is left to go to."""
        if not any(self.folder.bases.glob("*")):
            return
        pointers = (self.served, self.last_good)
        spared = {taken.base} | {pointer.base for pointer in pointers if pointer is not None}
        for name in self.folder.release_names():
            held = _readable(self.folder.release_file(name))
            spared |= {held.base} if held is not None else set()
        self.folder.sweep_bases(spared)

    def _promote(self, release: KeptRelease, probe: Probe | None) -> Promotion:
        before = self.served
        try:
            return self._swap(release, probe)
        except FleetError as error:
            # The rename may have happened although what followed it failed.
            now = self.served
            swapped = now is not None and now != before
            self._sweep()
            return self._outcome(release, swapped, error.code, error.message)

    def _swap(self, release: KeptRelease, probe: Probe | None) -> Promotion:
        self.held.check_fits(release)
        found = open_best(self.folder)
        after = self.held.merged(release)
        now, new = found.whole.pointer, after.pointer
        if found.source == "current" and (now.name, now.digest) == (new.name, new.digest):
            return self._unchanged(release, "already-served")
        reading = judge(probe, found.whole, after)
        if not reading.passed:
            self._sweep()
            detail = (
                f"macro-F1 on {reading.windows} own windows would fall from {reading.before:.3f} "
                f"to {reading.after:.3f}, by more than {reading.margin:g}"
            )
            return self._outcome(release, False, "probe-fell", detail, reading)
        self._point(found, new)
        self._sweep()
        return self._outcome(
            release, True, "promoted", f"release {release.number} is served", reading
        )

    def _point(self, found: Found, pointer: Pointer) -> None:
        # First what to go back to: cut off in between, both name what was served.
        if found.source == "current":
            self.folder.point(LAST_GOOD, found.whole.pointer)
        self.folder.point(CURRENT, pointer)

    def _sweep(self) -> None:
        with suppress(OSError):  # what stays is swept the next time
            self.folder.sweep()

    def _unchanged(self, release: KeptRelease, reason: str) -> Promotion:
        return self._outcome(release, False, reason, "nothing changed: it is served already")

    def _outcome(
        self,
        release: KeptRelease,
        swapped: bool,
        reason: str,
        detail: str,
        probe: ProbeReading | None = None,
    ) -> Promotion:
        return Promotion(
            swapped=swapped,
            number=release.number,
            state=release.state.digest,
            reason=reason,
            detail=detail,
            served=self.served,
            probe=probe,
        )


def _knows(held: KeptRelease, release: KeptRelease) -> bool:
    """Tell whether what is kept says all that is known of the same release now."""
    digest = held.published or not release.published
    signer = held.signed_by == release.signed_by or not release.signed_by
    return bool(digest and signer)


def _readable(path: Path) -> KeptRelease | None:
    try:
        return load_kept(path)
    except FleetError:
        return None

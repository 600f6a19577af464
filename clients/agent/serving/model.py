"""``DeviceModel``: answers windows with what is served now, and follows every swap."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.serving.folder import CURRENT, ModelFolder
from clients.agent.serving.personal import PERSONAL, personal_of
from clients.agent.serving.probe import normalisation_of
from clients.agent.serving.records import Pointer
from clients.agent.serving.whole import Whole, open_best, open_served
from fleet.adapt.base import BaseRecord
from fleet.errors import FleetError, InputError, StorageError

__all__ = ["BATCH", "RETRY_S", "DeviceModel"]

BATCH = 256  # windows computed at once, so that memory is bounded
RETRY_S = 60.0
_ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class _Answering:
    """What answers, as one: replaced whole, so that no call sees half a swap."""

    release: Pointer
    whole: Whole
    own: Pointer | None = None


class DeviceModel:
    """The model that a device serves, for any process that may read its state directory.

    Where the agent serves a private core or statistics of the device's own, they and the release
    together answer (:attr:`personal`). A swap by the agent is followed at the next call, without a
    restart. A call costs two ``stat`` more than the network; when that shows a swap, the calling
    thread reads the new model and verifies its digest while other threads go on with the old one.
    What cannot be read whole is not served: the old model stays, :attr:`problem` says why, and it
    is tried again after ``retry_s`` seconds or at the next swap. Where ``current`` is damaged from
    the start, or when a private core was taken back, what was served before it, or the base,
    answers. Nothing is ever written or unpickled.

    Any number of threads may call :meth:`predict`.

    Args:
        state_dir: The device's state directory.
        device: Where to compute, as torch names it, e.g. ``cuda``.
        retry_s: Seconds between attempts to read a swapped model that is not whole.

    Raises:
        StorageError: ``nothing-to-serve``.

    Example::

        model = DeviceModel(Path("/var/lib/corefleet"))
        labels, probabilities = model.predict(windows)  # (n, channels, window) in the base's units
        labels[0], float(probabilities[0].max())        # ('WALKING', 0.97)
    """

    def __init__(self, state_dir: Path, *, device: str = "cpu", retry_s: float = RETRY_S) -> None:
        self._folder = ModelFolder(state_dir)
        self._device = torch.device(device)
        self._retry_s = retry_s
        self._swapping = threading.Lock()
        self._seen = self._identity()
        found = open_best(self._folder)
        self._problem = "; ".join(found.problems)
        self._retry_at = time.monotonic() + retry_s
        self._answering = self._made(self._placed(found.whole))

    @property
    def served(self) -> Pointer:
        """The release that answered last, with a private core or without one."""
        return self._answering.release

    @property
    def personal(self) -> bool:
        """Whether the device's private core, or statistics of its own, are in what answers."""
        return self._answering.own is not None

    @property
    def digest(self) -> str:
        """Digest of the kernels that answered last: the release's, unless :attr:`personal`."""
        return self._answering.whole.pointer.digest

    @property
    def about(self) -> BaseRecord:
        """Classes, channels with units, rate, window and stride."""
        return self._answering.whole.about

    @property
    def problem(self) -> str:
        """Why ``current`` is not what answers; empty when it is."""
        return self._problem

    def predict(self, windows: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """Recognise activities.

        Args:
            windows: ``(n, channels, window)``, any real dtype, at the base's rate and in the
                base's units (see :attr:`about`); normalised here.

        Returns:
            The likeliest class of each window, ``n`` names, and the probabilities
            ``(n, classes)`` float32 in the order of ``about.labels``. All of one call come from
            one model.

        Raises:
            InputError: ``windows-shape``, ``windows-dtype`` or ``windows-not-finite``.
            StorageError: ``nothing-to-serve``: the private core that answered was taken back, and
                not even the base is whole.
        """
        self._follow()
        whole = self._answering.whole  # one model for the whole call, whatever is swapped meanwhile
        x = torch.from_numpy(normalisation_of(whole.about).apply(_checked(windows, whole.about)))
        with torch.inference_mode():
            parts = [
                torch.softmax(whole.network(x[start : start + BATCH].to(self._device)), dim=-1)
                for start in range(0, len(x), BATCH)
            ]
        if not parts:
            return (), np.zeros((0, len(whole.about.labels)), np.float32)
        probabilities = torch.cat(parts).cpu().numpy()
        return tuple(whole.about.labels[i] for i in probabilities.argmax(axis=1)), probabilities

    def _follow(self) -> None:
        identity = self._identity()
        again = bool(self._problem) and time.monotonic() >= self._retry_at
        if identity == self._seen and not again:
            return
        if self._swapping.acquire(blocking=False):
            try:
                self._reload()
            finally:
                self._swapping.release()

    def _reload(self) -> None:
        """Read what ``current`` names; keep what is served when that cannot be read whole.

        But for a private core that was taken back: its kernels may be of somebody forgotten.
        """
        for _ in range(_ATTEMPTS):
            identity = self._identity()
            problem = self._swap_in()
            # Swapped again meanwhile, the file read may have been swept: not a problem but late.
            if not problem or identity == self._identity():
                break
        if problem and self._withdrawn():
            self._answering = self._alone()
        self._retry_at = time.monotonic() + self._retry_s
        self._problem = problem
        self._seen = identity

    def _withdrawn(self) -> bool:
        """Tell whether the private core that answers is no longer noted beside its release."""
        now = self._answering
        if now.own is None:
            return False
        noted = personal_of(self._folder, now.release)
        return noted is None or noted.own != now.own

    def _alone(self) -> _Answering:
        """Return the best release that is whole, without a private core."""
        whole = self._placed(open_best(self._folder).whole)
        return _Answering(whole.pointer, whole)

    def _swap_in(self) -> str:
        try:
            pointer = self._folder.pointer(CURRENT)
            if pointer is None:
                raise StorageError("no-current", "there is no current model any more", "")
            self._answering = self._own(pointer) or self._global(pointer)
        except FleetError as error:
            return error.message
        except (OSError, RuntimeError, MemoryError) as error:  # torch's, e.g. memory for the new
            return f"{type(error).__name__}: {error}"
        return ""

    def _identity(self) -> tuple[object, ...]:
        return self._folder.identity(), self._folder.identity(PERSONAL)

    def _made(self, whole: Whole) -> _Answering:
        """Return what answers at the start, beside the release that is there."""
        return self._own(whole.pointer) or _Answering(whole.pointer, whole)

    def _own(self, release: Pointer) -> _Answering | None:
        """Return the release with the private core; None when it is to answer alone."""
        found = personal_of(self._folder, release)
        if found is None:
            return None
        now = getattr(self, "_answering", None)
        if now is not None and now.own == found.own:
            return _Answering(release, now.whole, found.own)
        try:
            whole = open_served(self._folder.own_file(found.own.name), found.own)
        except FleetError:  # the agent makes it anew; meanwhile the release answers
            return None
        return _Answering(release, self._placed(whole), found.own)

    def _global(self, release: Pointer) -> _Answering:
        now = self._answering
        same = (release.digest, release.base)
        if now.own is None and (now.whole.pointer.digest, now.whole.pointer.base) == same:
            return _Answering(release, now.whole)
        whole = open_served(self._folder.served_file(release.name), release)
        return _Answering(release, self._placed(whole))

    def _placed(self, whole: Whole) -> Whole:
        return Whole(whole.pointer, whole.network.to(self._device), whole.about)


def _checked(windows: NDArray[Any], about: BaseRecord) -> NDArray[np.float32]:
    windows = np.asarray(windows)
    wanted = (about.model.channels, about.model.window)
    if windows.ndim != 3 or windows.shape[1:] != wanted:
        raise InputError(
            "windows-shape",
            f"windows are (n, {wanted[0]}, {wanted[1]}): channels "
            f"{', '.join(name for name, _ in about.channels)} at {about.rate_hz:g} Hz; "
            f"these are {windows.shape}",
        )
    if windows.dtype.kind not in "fiu":
        raise InputError("windows-dtype", f"windows are numbers, not {windows.dtype}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        numbers = windows.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(
            "windows-not-finite", "windows hold NaN or infinity", "Leave out windows with gaps."
        )
    return numbers

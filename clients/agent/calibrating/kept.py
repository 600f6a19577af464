"""What of a device's own statistics is in its store.

Values of ``store.state``, plain JSON with a version. All are made of people's windows, so they are
under :data:`~clients.agent.store.forget.LEARNED`: they go when anybody is forgotten, and are taken
anew of the windows that are left.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.store import Store
from clients.agent.store.forget import LEARNED
from fleet.adapt.digest import digest_arrays
from fleet.errors import StorageError

__all__ = [
    "DROPS",
    "JUDGED",
    "KEPT",
    "TAKEN",
    "Kept",
    "drop_kept",
    "judged_of",
    "kept_of",
    "put_kept",
    "there",
]

VERSION = 1
"""Of every value here; one of another version is as good as none."""
KEPT = LEARNED + "statistics"
"""Key of the newest."""
TAKEN = LEARNED + "statistics.training"
"""Key of those under which the last training for the fleet began; its checkpoint goes on so."""
JUDGED = LEARNED + "statistics.judged"
"""Key of what the windows kept back said of them beside a release."""
DROPS = "statistics.drops"
"""Key of the state: how often the owner dropped them, so that whoever makes some notices."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A device's own statistics, as one map behind each batch norm's place.

    Args:
        base: Digest of the base.
        arrays: ``NAME/scale`` and ``NAME/shift``, float32 ``(channels,)``, see
            :class:`fleet.continual.calibration.Calibration`.
        windows: How many they were taken of.
        wanted: How many they were to be taken of at most.
        spanned: Over how many of the newest they were spread.
        last: Id of the newest window that was there.
        people: Whose windows they were.
        made_s: When, seconds since the epoch.
    """

    base: str
    arrays: Mapping[str, NDArray[np.float32]]
    windows: int
    wanted: int
    spanned: int
    last: int
    people: frozenset[str]
    made_s: float

    @property
    def digest(self) -> str:
        """Digest of the maps and the base that they are for."""
        return digest_arrays(self.arrays, self.base)


def kept_of(store: Store, key: str = KEPT) -> Kept | None:
    """Return the newest, or those of another key; None where there are none.

    Raises:
        StorageError: ``statistics-damaged``.
    """
    try:
        found = store.state.get(key)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return None
        kept = Kept(
            base=str(found["base"]),
            arrays={name: _unpacked(text) for name, text in found["maps"].items()},
            windows=int(found["windows"]),
            wanted=int(found["wanted"]),
            spanned=int(found["spanned"]),
            last=int(found["last"]),
            people=frozenset(map(str, found["people"])),
            made_s=float(found["made_s"]),
        )
        if kept.digest != found["digest"]:
            raise ValueError("their digest is another")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "statistics-damaged",
            f"the device's own statistics cannot be read: {error!r}",
            "They are taken anew.",
        ) from error
    return kept


def put_kept(store: Store, kept: Kept, key: str = KEPT) -> None:
    """Keep statistics in the place of those before."""
    maps = {
        name: base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
        for name, array in kept.arrays.items()
    }
    value = {
        "version": VERSION,
        "base": kept.base,
        "windows": kept.windows,
        "wanted": kept.wanted,
        "spanned": kept.spanned,
        "last": kept.last,
        "people": sorted(kept.people),
        "made_s": kept.made_s,
        "digest": kept.digest,
        "maps": maps,
    }
    store.state.put(key, value)


def there(store: Store) -> bool:
    """Tell whether anything is kept, whole or not."""
    keys = (KEPT, TAKEN, JUDGED)
    return store.database.number("SELECT count(*) FROM state WHERE key IN (?, ?, ?)", keys) > 0


def judged_of(store: Store) -> dict[str, Any]:
    """Return what the windows kept back said; nothing where that is not whole."""
    try:
        found = store.state.get(JUDGED)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def drop_kept(store: Store) -> bool:
    """Delete all of them; tells whether there were any."""
    with store.transaction() as connection:
        before = there(store)
        store.state.put(DROPS, int(store.state.get(DROPS, 0)) + 1)
        for key in (KEPT, TAKEN, JUDGED):
            connection.execute("DELETE FROM state WHERE key = ?", (key,))
    return before


def _unpacked(text: Any) -> NDArray[np.float32]:
    array = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("not all finite")
    return array

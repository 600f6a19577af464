"""Whose keys a restore lets in again, whose it shuts out, whose quarantine it ends; pure.

Keys are compared, not names: a device that was revoked may have been enrolled again under its name,
by another key. Laws (tests/server/control/backups/test_change.py): no key is in two of the lists; a
restore of the same registry has none in any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.control.backups.surveys import Survey

__all__ = ["Change"]

KEY_SHOWN = 16


@dataclass(frozen=True)
class Change:
    """What of a registry another one takes the place of.

    Args:
        before: The registry that is there now; None where there is none, or none that can be read.
        brings: The one of the backup.
        hidden: Whether there is one that cannot be read.
    """

    before: Survey | None
    brings: Survey
    hidden: bool = False

    @property
    def lets_in_again(self) -> list[dict[str, str]]:
        """Keys that are revoked here and good in the backup, with the device of each there."""
        refused = self.before.refused if self.before else frozenset()
        return _named({key: name for key, name in self.brings.admitted.items() if key in refused})

    @property
    def shuts_out(self) -> list[dict[str, str]]:
        """Keys that are good here and not in the backup, with the device of each here."""
        good = self.before.admitted if self.before else {}
        return _named({k: name for k, name in good.items() if k not in self.brings.admitted})

    @property
    def ends_quarantine(self) -> list[dict[str, str]]:
        """Keys in quarantine here that the backup lets take part, with the device of each there."""
        kept_out = self.before.quarantined if self.before else frozenset()
        ended = kept_out - self.brings.quarantined
        return _named({key: name for key, name in self.brings.admitted.items() if key in ended})

    @property
    def certificates(self) -> list[str]:
        """Serial numbers of operators' certificates that are revoked here and not in the backup."""
        refused = self.before.revoked_certificates if self.before else ()
        return sorted(set(refused) - set(self.brings.revoked_certificates))

    @property
    def warnings(self) -> list[str]:
        """The same in words, a line each, with the next step."""
        lines = []
        if self.hidden:
            lines.append("whom it lets in again cannot be told: the registry here is unreadable")
        if again := self.lets_in_again:
            lines.append(f"lets in again: {_listed(again)}, revoked here; revoke them again after")
        if count := len(self.certificates):
            what = f"revoked certificate{'s' * (count > 1)} of operators"
            lines.append(f"lets in again: {count} {what}; revoke them again after")
        if out := self.shuts_out:
            lines.append(f"shuts out: {_listed(out)}, enrolled here; enrol them again after")
        if ended := self.ends_quarantine:
            lines.append(f"ends the quarantine of: {_listed(ended)}; quarantine them again after")
        return lines

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        again = self.lets_in_again
        devices = sorted({each["device"] for each in again})
        return {
            "forgets": {"revoked_devices": devices, "revoked_certificates": self.certificates},
            "lets_in_again": again,
            "shuts_out": self.shuts_out,
            "ends_quarantine": self.ends_quarantine,
            "warnings": self.warnings,
        }


def _named(keys: Mapping[str, str]) -> list[dict[str, str]]:
    ordered = sorted((name, key) for key, name in keys.items())
    return [{"device": name, "fingerprint": key} for name, key in ordered]


def _listed(keys: list[dict[str, str]]) -> str:
    return ", ".join(f"{each['device']} (key {each['fingerprint'][:KEY_SHOWN]}…)" for each in keys)

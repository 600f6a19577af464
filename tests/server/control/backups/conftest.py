from __future__ import annotations

from tests.server.control.backups.backing_up import elsewhere, home, take

__all__ = ["elsewhere", "home", "take"]

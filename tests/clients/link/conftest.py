from __future__ import annotations

from tests.clients.link.sockets import agent, folder, socket

__all__ = ["agent", "folder", "socket"]

"""Tracing of networks, one at a time.

While ``torch.fx`` follows a network it replaces ``nn.Module.__call__`` for the whole process. Two
traces at once would put back each other's replacement. The lock keeps traces apart; a thread that
*runs* modules meanwhile is still disturbed, so trace before threads start.
"""

from __future__ import annotations

import threading

from torch import fx, nn

__all__ = ["trace"]

_LOCK = threading.RLock()


def trace(tracer: fx.Tracer, network: nn.Module) -> fx.Graph:
    """Return a network's graph; raises whatever its own forward raises on a proxy."""
    with _LOCK:
        return tracer.trace(network)

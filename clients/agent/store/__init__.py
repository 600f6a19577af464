"""What a device must not lose: windows, labels, replay, journal, outbox, counters.

    open_store(folder, clock=time.time) ──► Store
        .windows .labels .outbox .journal .counters .state .positions
        .forget(person)   .tidy()

One SQLite file in WAL mode, flushed at every commit. It needs numpy and pydantic, no torch.
"""

from clients.agent.store.records import Caps, SplitRule, WindowBatch
from clients.agent.store.store import Store, open_reader, open_store

__all__ = ["Caps", "SplitRule", "Store", "WindowBatch", "open_reader", "open_store"]

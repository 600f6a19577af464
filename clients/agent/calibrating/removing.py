"""Off and drop of a device's own statistics: from any process, beside an agent that runs; no torch.

Like those of the private core, they hold the model folder's lock. A core that was served with them
goes out of service as well, until the agent has judged it without.
"""

from __future__ import annotations

from pathlib import Path

from clients.agent.calibrating.kept import drop_kept
from clients.agent.config import DeviceConfig, save_config
from clients.agent.private.removing import locked
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.personal import personal_of, withdraw
from clients.agent.store import Store

__all__ = ["drop", "switch"]


def drop(state: Path, store: Store) -> bool:
    """Delete the statistics, and serve the release alone; tells whether there were any.

    Raises:
        StorageError: They could not be deleted.
    """
    with locked(state) as folder:
        if folder is not None:
            _withdraw(folder)
        return drop_kept(store)


def switch(state: Path, config: DeviceConfig, on: bool) -> bool:
    """Turn own statistics on or off in the configuration; off serves the release alone at once.

    Returns:
        Whether that changed anything.

    Raises:
        StorageError: It could not be written.
    """
    changed = config.statistics.own != on
    if changed:
        statistics = config.statistics.model_copy(update={"own": on})
        save_config(config.model_copy(update={"statistics": statistics}), state)
    if not on:
        with locked(state) as folder:
            if folder is not None:
                changed |= _withdraw(folder)
    return changed


def _withdraw(folder: ModelFolder) -> bool:
    """Take out of service what statistics may be in: not a private core alone."""
    noted = personal_of(folder)
    return withdraw(folder) if noted is None or noted.statistics else False

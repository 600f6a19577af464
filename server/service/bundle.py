"""The app as ``flwr run`` takes it: a folder that anybody can make from the installed packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from fleet.config import RunConfig
from fleet.files import write_text

__all__ = ["write_bundle", "write_run_config"]

# Code in the bundle would shadow the installed packages on every device, so only shims travel.
SERVER_APP = '''"""All of the server app that travels in the bundle; the rest is installed."""

from server import app as service

app = service.app
'''
CLIENT_APP = '''"""All of the client app that travels in the bundle; the rest is installed."""

from clients import bridge

app = bridge.app
'''
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "corefleet"
version = "{version}"
description = "The corefleet app; its code is installed on server and devices."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["corefleet_app"]

[tool.flwr.app]
publisher = "corefleet"
fab-format-version = 0
fab-include = ["corefleet_app/*.py"]

[tool.flwr.app.components]
serverapp = "corefleet_app.server_app:app"
clientapp = "corefleet_app.client_app:app"

[tool.flwr.app.config]
{config}"""


def write_bundle(folder: Path) -> Path:
    """Write the app into ``folder`` and return it.

    Raises:
        StorageError: When a file could not be written.
    """
    config = _lines(RunConfig.parse({}).for_flower())
    project = PROJECT.format(version=version("corefleet"), config=config)
    write_text(folder / "pyproject.toml", project)
    write_text(folder / "corefleet_app" / "__init__.py", '"""The app of the fleet."""\n')
    write_text(folder / "corefleet_app" / "server_app.py", SERVER_APP)
    write_text(folder / "corefleet_app" / "client_app.py", CLIENT_APP)
    return folder


def write_run_config(config: RunConfig, path: Path) -> Path:
    """Write a run's configuration in Flower's spelling to ``path`` and return it."""
    write_text(path, _lines(config.for_flower()))
    return path


def _lines(values: Mapping[str, bool | int | float | str]) -> str:
    # A JSON scalar of these kinds is a TOML one.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())

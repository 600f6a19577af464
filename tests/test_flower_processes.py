"""A whole ``flwr run`` with real processes, its configuration, and its end in mid-run."""

from __future__ import annotations

import json
import os
import select
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.flower_processes import FlowerSimulation, Setting, flower_simulation, is_alive

pytestmark = pytest.mark.e2e

PROJECT = """
[project]
name = "echo-app"
version = "0.1.0"
description = "Answers with what it was asked."
license = { text = "Apache-2.0" }

[tool.flwr.app]
publisher = "corefleet"
fab-format-version = 0
fab-include = ["echo_app/*.py"]

[tool.flwr.app.components]
serverapp = "echo_app.server_app:app"
clientapp = "echo_app.client_app:app"

[tool.flwr.app.config]
name = "undefined"
rate = 0.5
rounds = 1
careful = false
kept = "as declared"
report = ""
pipe = ""
"""

CLIENT = """
import json
import os
import threading
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    if context.run_config["pipe"]:
        with open(context.run_config["pipe"], "w") as pipe:
            pipe.write(json.dumps({"pid": os.getpid(), **context.run_config}) + chr(10))
        threading.Event().wait()
    facts = {"cwd": os.getcwd(), "data": os.environ.get("FLEET_DATA"),
             "threads": os.environ.get("OMP_NUM_THREADS"), **context.node_config,
             "run_config": dict(context.run_config)}
    return Message(RecordDict({"config": ConfigRecord({"facts": json.dumps(facts)})}),
                   reply_to=message)
"""

SERVER = """
import json
import os
import threading
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    nodes = []
    while len(nodes) < 3 and not threading.Event().wait(0.1):
        nodes = list(grid.get_node_ids())
    asked = [Message(RecordDict(), node, "train", ttl=100, group_id="1") for node in nodes]
    waiting, replies = set(grid.push_messages(asked)), []
    while waiting and not threading.Event().wait(0.1):  # Flower's own wait looks every 3 s
        replies += grid.pull_messages(waiting)
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
    facts = [json.loads(reply.content["config"]["facts"]) for reply in replies]
    own = {"cwd": os.getcwd(), "data": os.environ.get("FLEET_DATA")}
    Path(context.run_config["report"]).write_text(json.dumps({"server": own, "devices": facts}))
    print("report written")
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    package = tmp_path / "app" / "echo_app"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").touch()
    (package / "client_app.py").write_text(textwrap.dedent(CLIENT))
    (package / "server_app.py").write_text(textwrap.dedent(SERVER))
    return package.parent


def test_a_run_gets_its_configuration_and_no_process_outlives_one_that_is_cut_short(
    app_dir: Path, tmp_path: Path
) -> None:
    """One SuperLink for both: it takes seconds to start."""
    reader = os.open(piped(tmp_path), os.O_RDWR | os.O_NONBLOCK)
    with ThreadPoolExecutor(1) as pool:
        with flower_simulation({"FLEET_DATA": "/some/data"}, cwd=tmp_path) as simulation:
            check_configuration(simulation, app_dir, tmp_path)
            run = pool.submit(simulation.flwr_run, app_dir, tmp_path / "overrides.toml", 3, 90)
            assert select.select([reader], [], [], 90)[0], "no device started"
            told = json.loads(os.read(reader, 4096).splitlines()[0])
            alive = simulation.processes()
        with pytest.raises(RuntimeError, match="flwr run ended"):
            run.result(timeout=30)
    os.close(reader)
    assert told["rounds"] == 2
    assert told["pid"] in alive
    assert not any(map(is_alive, alive))
    assert not simulation.processes()
    assert not simulation.folder.exists()


def piped(folder: Path) -> Path:
    """Make overrides of a run whose devices say that they have begun, and then never end."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    (folder / "overrides.toml").write_text(f'rounds = 2\npipe = "{pipe}"\n')
    return pipe


def check_configuration(simulation: FlowerSimulation, app_dir: Path, place: Path) -> None:
    report = place / "report.json"
    run_config: dict[str, Setting] = {"name": "two words", "rate": 0.25, "rounds": 3}
    run_config |= {"careful": True, "report": str(report)}
    log = simulation.flwr_run(app_dir, run_config, 3, 90)
    assert "report written" in log
    told = json.loads(report.read_text())
    assert told["server"] == {"cwd": str(place), "data": "/some/data"}
    assert sorted(device["partition-id"] for device in told["devices"]) == [0, 1, 2]
    for device in told["devices"]:
        assert (device["cwd"], device["data"]) == (str(place), "/some/data")
        assert (device["num-partitions"], device["threads"]) == (3, "1")
        assert device["run_config"] == {"kept": "as declared", "pipe": "", **run_config}

from __future__ import annotations

import time
from pathlib import Path

from fleet.supervise.record import write_run
from server.registry import open_registry
from server.service.keeper import Run, run_config_of
from server.service.keeping import SILENT_S
from server.service.lives import standing_line_of, standing_of
from tests.server.control.controlling import ended_at
from tests.server.service.fronting import made_folder


def test_the_standing_service_is_told_by_its_run_and_its_heartbeat(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "server")
    assert "fleet server init --standing" in standing_line_of(None)
    assert standing_line_of(standing_of(folder)) == "has not begun yet"
    assert standing_of(folder)["next"] == "fleet server up"
    place = folder.path / "registry.sqlite"
    assert run_config_of(folder).registry == str(place)
    now = [time.time()]
    with open_registry(place, clock=lambda: now[0]) as registry:
        doing = {"phase": "idle", "round": 3}
        folder.standing.write_text(Run(run="17", started_at_s=now[0] - 60).model_dump_json())
        registry.observations.beat(pid=5, version="", started_at_s=now[0] - 50, doing=doing)
        found = standing_of(folder)
        assert (found["run"], found["lives"], found["pid"]) == ("17", True, 5)
        assert "phase idle, round 3" in standing_line_of(found)
        # The heartbeat of a service before is no sign of this one.
        registry.observations.beat(pid=5, version="", started_at_s=now[0] - 70, doing=doing)
        assert not standing_of(folder)["lives"]
        now[0] -= SILENT_S + 10
        registry.observations.beat(pid=5, version="", started_at_s=now[0] + 200, doing=doing)
        assert "run 17 is silent" in standing_line_of(standing_of(folder))


def test_a_service_that_idles_says_why_and_what_the_next_step_is(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "server")
    now = time.time()
    folder.standing.write_text(Run(run="17", started_at_s=now - 60).model_dump_json())
    with open_registry(folder.path / "registry.sqlite", clock=lambda: now) as registry:

        def line(doing: dict[str, str]) -> str:
            registry.observations.beat(pid=5, version="", started_at_s=now - 50, doing=doing)
            return standing_line_of(standing_of(folder))

        idle = {"phase": "idle", "why": "on order only"}
        assert line(idle).endswith("phase idle, on order only, next: fleet round start")
        order = registry.orders.place("start_round", {}, actor="anna")
        registry.orders.finish(order.id, error="too few", actor="service")
        assert line(idle).endswith("phase idle, on order only, last order failed: too few")
        waiting = {"phase": "idle", "waiting": "no base", "next": "fleet base install FILE"}
        assert line(waiting).endswith("waiting no base, next: fleet base install FILE")


def test_a_service_whose_server_ended_is_to_be_started_before_anything_is_ordered(
    tmp_path: Path,
) -> None:
    folder = made_folder(tmp_path / "server")
    now = time.time()
    folder.standing.write_text(Run(run="17", started_at_s=now - 90).model_dump_json())
    with open_registry(folder.path / "registry.sqlite", clock=lambda: now - 40) as registry:
        idle = {"phase": "idle", "why": "on order only"}
        registry.observations.beat(pid=5, version="", started_at_s=now - 80, doing=idle)
    assert standing_of(folder)["lives"]
    assert standing_of(folder)["next"] == ""
    write_run(folder.path, ended_at(now - 39))
    found = standing_of(folder)
    assert (found["lives"], found["ended"], found["next"]) == (False, True, "fleet server up")
    line = standing_line_of(found)
    assert line.startswith("run 17 has ended; last heard of 40 s ago")
    assert "fleet round start" not in line


def test_a_registry_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "server")
    (folder.path / "registry.sqlite").write_bytes(b"no database at all" * 100)
    assert standing_line_of(standing_of(folder)).startswith("unknown: ")

"""Runs a supervisor of stand-ins: ``supervised.py STATE AGENT-MODES SUPERNODE-MODES [STOP_S]``.

Events go to standard output as JSON lines; delays are tiny.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from datetime import datetime
from pathlib import Path

from fleet.errors import FleetError, InputError
from fleet.supervise.child import Exit
from fleet.supervise.record import Program
from fleet.supervise.restarts import Backoff
from fleet.supervise.supervisor import Supervisor
from fleet.supervise.told import Told
from fleet.supervise.ward import Spec, World

STAND_IN = Path(__file__).with_name("stand_in.py")
PROGRAM = Program("a run", "a status", "--state")
TINY = Backoff(least_s=0.01, first_s=0.02, longest_s=0.05, steady_s=60.0)


def spec(name: str, state: Path, modes: str, stop_s: float) -> Spec:
    command = [sys.executable, "-S", str(STAND_IN), name, str(state / "journal"), *modes.split()]
    return Spec(
        name,
        command,
        dict(os.environ),
        TINY,
        stop_s,
        final=final,
        recycled_on_hangup=name != "agent",
    )


def final(end: Exit, lines: list[str]) -> FleetError | None:
    told = json.loads(lines[0]) if end.status == InputError.exit_code else {}
    return InputError(told["code"], told["detail"]) if told else None


def tell(told: Told) -> None:
    try:
        print(json.dumps(told.record(datetime.now().astimezone())), flush=True)
    except OSError:
        return


def main() -> int:
    state, stop_s = Path(sys.argv[1]), float(sys.argv[4])
    specs = [
        spec(name, state, modes, stop_s)
        for name, modes in (("agent", sys.argv[2]), ("supernode", sys.argv[3]))
        if modes
    ]
    world = World(time.monotonic, lambda: datetime.now().astimezone(), random.random)
    try:
        return Supervisor(
            specs, state, 2**16, PROGRAM, world, tell, lambda _, line: print(line, file=sys.stderr)
        ).run()
    except FleetError as error:
        print(json.dumps({"event": "error", "code": error.code, "text": error.message}))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

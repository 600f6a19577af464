"""Stands in for agent or SuperNode: it writes down what happens to it, and ends as it is told.

``stand_in.py NAME JOURNAL MODE...``: ``stays``; ``ends-N`` prints a Flower exit code and ends with
1 in its first N lives, then stays; ``stubborn`` ignores SIGTERM; ``parent`` has a child that does;
``code-N`` prints an error as the agent does and ends with N; ``quiet`` closes its output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

STUBBORN = "import signal, threading; signal.signal(15, signal.SIG_IGN); threading.Event().wait(60)"


def main() -> int:
    name, journal, *modes = sys.argv[1:]
    over = threading.Event()

    def note(text: str) -> None:
        with open(journal, "a") as file:
            file.write(f"{name} {text}\n")

    def end(*_: object) -> None:
        note("term")
        over.set()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in modes else end)
    if "parent" in modes:
        subprocess.Popen([sys.executable, "-c", STUBBORN])
    note("up")
    lives = Path(journal).read_text().count(f"{name} up")
    print(f"{name} is up", flush=True)
    for mode in modes:
        kind, _, number = mode.partition("-")
        if kind == "ends" and lives <= int(number):
            print("ERROR: Exit Code: 305\nno connection", flush=True)
            return 1
        if kind == "code":
            error = {"event": "agent.failed", "code": "no-base", "detail": "no base", "hint": "x"}
            print(json.dumps(error), file=sys.stderr)
            return int(number)
        if kind == "quiet":
            os.close(1)
            os.close(2)
    over.wait(60)
    note("over")
    return 0


if __name__ == "__main__":
    os._exit(main())

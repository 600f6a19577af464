"""Run as a process: takes a file in while it is killed over and over, until it comes through.

Each forked child goes on where the store says it was and dies by SIGKILL just before its n-th
statement; n grows slowly, so that deaths fall on every kind of statement.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from clients.agent.intake.sources import ingest_file
from clients.agent.store import open_store
from tests.clients.agent.intake.recordings import small_spec
from tests.clients.agent.store.killed import die_before

BLOCK_BYTES = 1500


def main(recording: Path, folder: Path) -> None:
    deaths = 0
    while True:
        process = os.fork()
        if not process:
            code = 1
            try:
                die_before(20 + deaths)
                with open_store(folder, clock=lambda: 1.0) as store:
                    ingest_file(
                        recording, "csv", small_spec(), store, "ada", block_bytes=BLOCK_BYTES
                    )
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(process, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
    print(json.dumps({"deaths": deaths}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

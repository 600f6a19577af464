"""Run as a process: takes samples from a broker while it is killed over and over.

Each forked child goes on where store and broker are and dies by SIGKILL just before its n-th
statement of SQL, or just before it acknowledges its n-th message, in turns, until one hears nothing
new any more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from clients.agent.intake import acks, mqtt, subscription
from clients.agent.intake.broker import Broker
from clients.agent.intake.subscription import Subscription
from clients.agent.store import open_store
from tests.clients.agent.intake.recordings import small_spec
from tests.clients.agent.store.killed import die_before

IDLE_S = 0.5
MOST_DEATHS = 400


def die_before_ack(count: int) -> None:
    acknowledge, left = Subscription.ack, [count]

    def counted(one: Subscription, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            acknowledge(one, (number,))

    Subscription.ack = counted  # type: ignore[method-assign]


def ingest(port: int, folder: Path, idle_s: float = IDLE_S) -> int:
    with open_store(folder, clock=lambda: 1.0) as store:
        report = mqtt.ingest_mqtt(
            Broker("127.0.0.1", port),
            "waist",
            "jsonl",
            small_spec(),
            store,
            "ada",
            "waist",
            device="kitchen",
            idle_s=idle_s,
        )
    return report.duplicates


def main(port: int, folder: Path) -> None:
    # Small commits, so that there are many places to die at.
    acks.COMMIT_MESSAGES = 7
    subscription.READ_AT_ONCE = 5
    deaths = repeated = 0
    while deaths < MOST_DEATHS:
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            code = 1
            try:
                if deaths % 2:
                    die_before_ack(deaths % 9)
                else:
                    die_before(20 + deaths)
                os.write(writer, str(ingest(port, folder)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as answer:
            repeated += int(answer.read() or 0)
        status = os.waitpid(process, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
    print(json.dumps({"deaths": deaths, "repeated": repeated}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

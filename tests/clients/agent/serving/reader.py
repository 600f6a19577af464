"""A process that reads while another one promotes.

    python -m tests.clients.agent.serving.reader STATE LAST

It predicts until release LAST answers, and prints every pair of (served digest, answer) it saw.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from clients.agent.serving.model import DeviceModel
from tests.clients.agent.serving.factories import raw_windows

DEADLINE_S = 60.0


def main(state: Path, last: int) -> None:
    torch.set_num_threads(1)
    windows = raw_windows(2)
    model = DeviceModel(state)
    print("ready", flush=True)
    seen: dict[str, list[str]] = {}
    calls = 0
    deadline = time.monotonic() + DEADLINE_S
    while model.served.number != last:
        assert time.monotonic() < deadline, f"still release {model.served.number}"
        _, probabilities = model.predict(windows)
        answer = hashlib.sha256(probabilities.tobytes()).hexdigest()
        answers = seen.setdefault(model.served.digest, [])
        if answer not in answers:
            answers.append(answer)
        assert model.problem == "", model.problem
        calls += 1
    print(json.dumps({"calls": calls, "seen": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

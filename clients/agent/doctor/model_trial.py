"""Read back every model that a device holds; run as a script, for it needs the device's torch.

Prints one JSON list of ``what``, ``digest`` and ``problem``, as ``fleet-device release verify``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def try_models(state: Path) -> list[dict[str, str]]:
    """Verify base, served models and kept releases of a state directory."""
    from clients.agent.serving.inventory import verify
    from clients.agent.serving.serve import Serving

    return [check.model_dump() for check in verify(Serving(state))]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_models(Path(sys.argv[1]))) + "\n")

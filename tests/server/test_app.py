from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients import bridge
from fleet.errors import InputError
from server.app import main
from simulations.inprocess import InProcessGrid


def test_a_trace_is_refused_outside_of_simulated_time(tmp_path: Path) -> None:
    context = Context(1, 1, {}, RecordDict(), {"trace": "nightly", "out": str(tmp_path / "run")})
    with pytest.raises(InputError) as refused:
        main(InProcessGrid(bridge.app, 1), context)
    assert refused.value.code == "trace-engine"
    assert "--engine cohort" in refused.value.hint
    assert not (tmp_path / "run").exists()

from __future__ import annotations

import pytest

from simulations.bench import measure, report
from simulations.benchmarks import aggregate, bridge, protocol, wire


def test_sides_take_turns_after_one_warm_up_each() -> None:
    calls: list[str] = []
    measured = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, runs=3)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {m.runs for m in measured.values()} == {3}
    assert all(m.lowest <= m.median <= m.highest for m in measured.values())


def test_a_report_states_machine_versions_and_ratios() -> None:
    measured = measure({"one": lambda: None, "two": lambda: None}, runs=3)
    record = report(measured, "one", {"calls": 1})
    assert record["sides"]["one"]["ratio"] == 1.0
    assert record["machine"]
    assert record["versions"]["flwr"]
    assert record["command"].startswith("fleet")


@pytest.mark.parametrize(
    ("record", "sides"),
    [
        (lambda: aggregate.run(5, 8, 3), {"plain-int64-sum", "exact-sum", "stored-updates"}),
        (lambda: wire.run(8, 3), {"raw-bytes", "update-record", "flower-objects"}),
        (lambda: protocol.run(3, 2), {"bare-calls", "coordinator-over-grid"}),
        (lambda: bridge.run(8, 1), {"flower", "flower-and-bridge", "and-one-answer"}),
    ],
    ids=["aggregate", "wire", "protocol", "bridge"],
)
def test_every_benchmark_runs_at_toy_size_and_has_both_sides(
    record: object, sides: set[str]
) -> None:
    assert callable(record)
    result = record()
    assert sides <= set(result["sides"])


def test_the_protocol_benchmark_accepts_every_update_on_both_sides() -> None:
    notes = protocol.run(4, 2)["notes"]
    assert notes[0] == "8 updates accepted over the grid, 8 by bare calls"

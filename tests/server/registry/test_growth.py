from __future__ import annotations

import itertools

import pytest

from fleet.federate.rule import read_rule
from server.registry import Registry, growth
from server.registry.growth import Growth, measure


def test_the_rounds_that_are_measured_are_real_ones(empty: Registry) -> None:
    ticks = itertools.count(0.0, 2.0)
    found = measure(empty, devices=3, update_bytes=40_000, rounds=2, now=lambda: next(ticks))
    assert found == Growth(2, found.bytes_per_round, 10, 2.0)
    assert found.commits_per_s == 5.0
    assert found.bytes_per_round > 0
    assert [empty.replay(number).same for number in (1, 2)] == [True, True]
    assert {update.payload.array.nbytes for update in empty.rounds.updates(1)} == {40_000}


def test_what_a_rule_remembers_is_measured_too(empty: Registry) -> None:
    adam = read_rule("adam:0.01")
    measure(empty, devices=2, update_bytes=400, rounds=2, rule=adam)
    assert empty.releases.memory(2, adam).steps == 2
    assert [empty.replay(number).same for number in (1, 2)] == [True, True]


def test_the_measurement_is_printed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["growth", "--devices", "2", "--update-bytes", "40", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    growth.main()
    assert capsys.readouterr().out.startswith("2 devices x 40 B: ")

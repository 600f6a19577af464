from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import InputError
from simulations.traces import field as module
from simulations.traces.field import Field, Journey
from simulations.traces.trace import Trace, parse_trace, trace_names, trace_text

ALWAYS = '[[availability]]\nkind = "always"\nsource = "a test"\n'
DEVICE = """[[device]]
name = "one"
share = 1.0
train_windows_per_s = 50
judge_windows_per_s = 200
down_bytes_per_s = 1000
up_bytes_per_s = 500
latency_s = 0.25
source = "a test"
"""
NIGHTS = '[[availability]]\nkind = "diurnal"\nstarts_h = 2\nhours = 1\nsource = "a test"\n'
PARETO = (
    '[[availability]]\nkind = "pareto"\nshape = 1.5\nleast_online_s = 60\nleast_offline_s = 60\n'
    'source = "a test"\n'
)
HOUR = 3600.0


def trace(*parts: str) -> Trace:
    return parse_trace('about = "a test"\n' + "".join(parts), "test")


@pytest.mark.parametrize("name", trace_names())
def test_every_trace_that_comes_with_the_package_names_its_sources(name: str) -> None:
    found = parse_trace(trace_text(name), name)
    sources = [each.source for each in (*found.availability, *found.device)]
    assert all(len(source) > 20 for source in sources)
    assert all("assumed" in each.source for each in found.device)
    assert sum(each.share for each in found.device) == pytest.approx(1)


def test_the_package_brings_four_traces() -> None:
    assert trace_names() == ["churning", "flaky", "nightly", "steady"]


def test_a_trace_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'about = "mine"\n{ALWAYS}{DEVICE}')
    assert parse_trace(trace_text(str(path)), str(path)).about == "mine"


def test_the_trace_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "traces.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert parse_trace(text, "docs").faults.lost_up == 0.01


def test_a_name_that_is_neither_says_which_traces_there_are() -> None:
    with pytest.raises(InputError) as refused:
        trace_text("weekly")
    assert refused.value.code == "unknown-trace"
    assert "nightly" in refused.value.message


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ((ALWAYS,), "device"),
        ((DEVICE,), "availability"),
        ((ALWAYS, DEVICE, DEVICE.replace("one", "two")), "add up to 1, not 2"),
        ((ALWAYS, DEVICE.replace("source", "sauce")), "device.0.source"),
        ((ALWAYS, DEVICE.replace("= 50\n", "= nan\n")), "train_windows_per_s"),
        ((ALWAYS, DEVICE.replace("= 50\n", "= -1\n")), "train_windows_per_s"),
        ((ALWAYS.replace("always", "sometimes"), DEVICE), "availability.0"),
        ((ALWAYS, DEVICE, '[faults]\nlost_up = 1.0\nsource = "x"\n'), "faults.lost_up"),
        ((ALWAYS, "[[device"), "no TOML"),
    ],
)
def test_a_bad_trace_is_refused_with_its_name_and_the_rule(
    parts: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(InputError) as refused:
        trace(*parts)
    assert refused.value.code == "bad-trace"
    assert problem in refused.value.message
    assert "docs/traces.md" in refused.value.hint


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="breaks a rule"):
        trace_text(str(path))


def test_the_time_of_an_answer_is_known_by_hand() -> None:
    field = Field(trace(ALWAYS, DEVICE), 0)
    training = Journey(100.0, 2000, 150, True, math.inf)
    # 0.25 s latency, 2000 B at 1000 B/s, 150 windows at 50/s; back 0.25 s and 1000 B at 500 B/s.
    assert field.answers_at(0, training) == 100 + 0.25 + 2 + 3
    assert field.travels(0, 1000) == 0.25 + 2
    judging = Journey(100.0, 2000, 150, False, math.inf)
    assert field.answers_at(0, judging) == 100 + 0.25 + 2 + 0.75


def test_a_message_waits_for_its_device_and_an_answer_for_the_link() -> None:
    field = Field(trace(NIGHTS, DEVICE), 0)
    # Pushed at one o'clock, when nobody is there before two.
    work = Journey(1 * HOUR, 0, 100, True, 100 * HOUR)
    assert field.answers_at(0, work) == 2 * HOUR + 0.25 + 2
    # An hour and a half of work, done offline; the answer leaves the night after.
    long = Journey(1 * HOUR, 0, 50 * 5400, True, 100 * HOUR)
    assert field.answers_at(0, long) == 26 * HOUR
    assert field.answers_at(0, Journey(1 * HOUR, 0, 50 * 5400, True, 20 * HOUR)) == math.inf


def test_what_takes_no_time_takes_none() -> None:
    fast = DEVICE.replace("= 50\n", "= inf\n").replace("= 1000", "= inf").replace("0.25", "0")
    field = Field(trace(ALWAYS, fast), 0)
    assert field.answers_at(5, Journey(7.0, 10**9, 10**9, True, math.inf)) == 7.0


def test_all_availabilities_must_agree() -> None:
    field = Field(trace(NIGHTS, PARETO, DEVICE), 0)
    nights = Field(trace(NIGHTS, DEVICE), 0)
    spells = Field(trace(PARETO, DEVICE), 0)
    for partition in range(20):
        for at in np.linspace(0, 60 * HOUR, 121).tolist():
            both = nights.online(partition, at) and spells.online(partition, at)
            assert field.online(partition, at) == both


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 3), st.floats(0, 100 * HOUR))
def test_devices_are_the_same_in_whatever_order_they_are_asked(
    order: list[int], seed: int, at: float
) -> None:
    made = trace(PARETO, DEVICE.replace("1.0", "0.5"), DEVICE.replace("1.0", "0.5"))

    def ask(partitions: list[int]) -> dict[int, object]:
        field = Field(made, seed)
        return {
            p: (field.online(p, at), field.fate(p, "train/1"), field.class_of(p).name)
            for p in partitions
        }

    assert ask(order) == ask(sorted(order))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 100 * HOUR), st.floats(1, 10 * HOUR))
def test_the_first_moment_online_is_one_and_none_is_before_it(
    partition: int, at: float, more: float
) -> None:
    field = Field(trace(PARETO, DEVICE), 1)
    found = field.online_from(partition, at, at + more)
    assert found >= at
    if found < math.inf:
        assert found < at + more
        assert field.online(partition, found)
    before = np.linspace(at, min(found, at + more), 20, endpoint=False)
    assert all(found == at or not field.online(partition, t) for t in before.tolist())


def test_classes_and_faults_come_in_the_stated_shares() -> None:
    made = trace(
        ALWAYS,
        DEVICE.replace("1.0", "0.2"),
        DEVICE.replace("1.0", "0.8").replace("one", "two"),
        '[faults]\nlost_down = 0.1\nlost_up = 0.2\ndoubled = 0.3\nsource = "a test"\n',
    )
    field = Field(made, 0)
    ones = np.mean([field.class_of(p).name == "one" for p in range(4000)])
    fates = [field.fate(p, "train/1/0.0") for p in range(4000)]
    assert ones == pytest.approx(0.2, abs=0.03)
    assert np.mean([f.lost for f in fates]) == pytest.approx(1 - 0.9 * 0.8, abs=0.03)
    assert np.mean([f.doubled for f in fates]) == pytest.approx(0.3, abs=0.03)
    assert field.fate(1, "train/1/0.0") == field.fate(1, "train/1/0.0")
    assert [field.fate(p, "train/2/0.0") for p in range(100)] != fates[:100]


def test_few_spells_are_remembered_however_many_devices_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LARGEST_SPELLS_HELD", 10)
    field = Field(trace(PARETO, DEVICE), 0)
    asked = [field.online(p, 5000.0) for p in range(100)]
    assert len(field._spells) == 10
    assert [field.online(p, 5000.0) for p in range(100)] == asked

from __future__ import annotations

import pytest

from fleet.config import RunConfig
from fleet.errors import InputError
from fleet.federate.rule import MEAN, RULES, RuleSpec, read_rule

SPELT = ("mean", "clip:1.0", "momentum:0.9", "adam:0.01", "yogi:0.01", "median", "trimmed:0.2")
SPELT = (*SPELT, "krum:3", "multikrum:3")


@pytest.mark.parametrize("text", SPELT)
def test_a_spelling_is_read_back_as_it_was_written(text: str) -> None:
    assert read_rule(text).text == text
    assert RunConfig.parse({"rule": text}).rule == text


@pytest.mark.parametrize(
    ("text", "same"),
    [("clip:1", "clip:1.0"), ("clip:1e0", "clip:1.0"), (" mean ", "mean"), ("krum:03", "krum:3")],
)
def test_two_spellings_of_one_rule_are_one(text: str, same: str) -> None:
    assert RunConfig.parse({"rule": text}).rule == same


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no rule ''"),
        ("average", "krum:LIARS"),
        ("mean:1", "mean takes no number"),
        ("median:", "median takes no number"),
        ("clip", "clip:NORM takes a number in (0, 1000]"),
        ("clip:0", "in (0, 1000], not 0.0"),
        ("clip:nan", "in (0, 1000], not nan"),
        ("clip:inf", "in (0, 1000], not inf"),
        ("momentum:1", "in (0, 1), not 1.0"),
        ("momentum:0", "in (0, 1), not 0.0"),
        ("adam:-0.1", "in (0, 10]"),
        ("yogi:x", "not 'x'"),
        ("trimmed:0.5", "in (0, 0.5), not 0.5"),
        ("krum:1.5", "a whole number"),
        ("krum:-1", "a whole number"),
        ("multikrum:60000", "a whole number from 0 to 49998"),
        ("krum:3:2", "not '3:2'"),
    ],
)
def test_what_is_no_rule_is_told_with_what_would_be(text: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        read_rule(text)
    assert refused.value.code == "rule"
    assert told in refused.value.message


def test_a_run_tells_a_wrong_rule_beside_everything_else_that_is_wrong() -> None:
    with pytest.raises(InputError) as refused:
        RunConfig.parse({"rule": "krum:x", "rounds": 0})
    assert refused.value.code == "run-config"
    assert "krum:LIARS" in refused.value.message
    assert "rounds" in refused.value.message


@pytest.mark.parametrize(
    ("text", "fewest"),
    [
        ("mean", 1),
        ("clip:1.0", 1),
        ("adam:0.1", 1),
        ("median", 3),
        ("krum:0", 3),
        ("krum:3", 9),
        ("multikrum:1", 5),
        ("trimmed:0.2", 5),
        ("trimmed:0.1", 10),
        ("trimmed:0.3", 4),
        ("trimmed:0.49", 3),
        ("trimmed:0.001", 1000),
    ],
)
def test_a_rule_needs_as_many_updates_as_make_it_what_it_says(text: str, fewest: int) -> None:
    rule = read_rule(text)
    assert rule.fewest == fewest
    if rule.name == "trimmed":
        share = float(rule.value or 0)
        assert int(share * fewest) >= 1 > int(share * (fewest - 1))


def test_the_record_has_the_parameter_under_its_name() -> None:
    assert read_rule("krum:3").record == {"name": "krum", "liars": 3}
    assert read_rule("clip:2").record == {"name": "clip", "norm": 2.0}
    assert MEAN.record == {"name": "mean"} == RuleSpec().record


def test_the_default_of_a_run_is_the_exact_mean() -> None:
    assert read_rule(RunConfig.parse({}).rule) == MEAN


def test_every_rule_is_spelt_here() -> None:
    assert [each.partition(":")[0] for each in RULES] == [each.partition(":")[0] for each in SPELT]

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from clients.agent.config import parse_config, render_config
from clients.agent.drifting.settings import Drift, Signal
from fleet.continual.change_tests import CusumTest
from fleet.continual.drift import DETECTORS, LabelFreeDrift, LossDrift
from fleet.continual.options import ContinualOptions
from fleet.errors import InputError
from tests.clients.agent.drifting.streams import config_of


def test_nobody_is_watched_unless_its_owner_says_so() -> None:
    drift = parse_config('name = "a"').drift
    assert (drift.watch, drift.participate) == (False, "always")


def test_defaults_are_those_of_the_library() -> None:
    drift = Drift()
    free, loss = (inspect.signature(each).parameters for each in (LabelFreeDrift, LossDrift))
    assert (drift.test, drift.block, drift.warm_up) == tuple(
        free[name].default for name in ("test", "block", "warm_up")
    )
    assert (drift.loss_delta, drift.loss_warm_up) == (
        loss["delta"].default,
        loss["warm_up"].default,
    )
    assert LabelFreeDrift(parameter=drift.threshold or None).parameter == CusumTest.default
    assert drift.rounds == ContinualOptions.model_fields["trigger_rounds"].default
    assert set(get_args(Signal)) == set(DETECTORS)


def test_what_is_written_is_read_back() -> None:
    config = config_of(signals=("loss", "label-free"), participate="drift", rounds=7)
    assert parse_config(render_config(config)) == config


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('participate = "drift"', ["participate", "needs watch = true"]),
        ("watch = true\nsignals = []", ["signals"]),
        ('signals = ["loss", "loss"]', ["signals names one twice"]),
        ('signals = ["mood"]', ["signals", "'label-free' or 'loss'"]),
        ("block = 50", ["warm-up is 400, less than 10 blocks of 50"]),
        ('test = "adwin"\nthreshold = 3', ["delta must be below 1"]),
        ("rounds = 0\nwatch = 3\nloss-delta = 1.0", ["rounds", "watch", "loss-delta"]),
        ("treshold = 3", ["treshold"]),
    ],
)
def test_a_section_that_breaks_rules_is_refused_with_all_of_them(
    lines: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(f'name = "a"\n[drift]\n{lines}')
    assert caught.value.code == "device-config"
    for word in words:
        assert word in caught.value.message

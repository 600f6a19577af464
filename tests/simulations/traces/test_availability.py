from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulations.traces.alternating import Exponential, Pareto, Spell
from simulations.traces.availability import Always, Churn, Diurnal, ParetoSpells

HOUR = 3600.0
DAY = 24 * HOUR
Model = Always | Diurnal | Churn | ParetoSpells
MODELS: list[Model] = [
    Always(kind="always", source="a test"),
    Diurnal(kind="diurnal", source="a test", starts_h=22, hours=8),
    Diurnal(
        kind="diurnal", source="a test", starts_h=1, hours=6, zones_h=9, jitter_h=3, skipped=0.3
    ),
    Diurnal(kind="diurnal", source="a test", starts_h=0, hours=24),
    Churn(kind="churn", source="a test", stays_h=30, away_h=10),
    Churn(kind="churn", source="a test", founders=0.2, joins_h=50, life_h=200, stays_h=9, away_h=3),
    ParetoSpells(kind="pareto", source="a test", shape=2.5, least_online_s=90, least_offline_s=30),
    ParetoSpells(kind="pareto", source="a test", shape=1.1, least_online_s=60, least_offline_s=60),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{m.kind}-{m.share:.2f}")
moments = st.floats(0, 90 * DAY)


def spells(model: Model, device: str, until: float, seed: int = 0) -> Sequence[Spell]:
    found, at = [], 0.0
    while at < until:
        found.append(model.spell(seed, device, at))
        at = found[-1].until
    return found


@each_model
@settings(max_examples=60, deadline=None)
@given(st.lists(moments, min_size=2, max_size=6), st.integers(0, 5), st.integers(0, 10**6))
def test_availability_is_a_function_of_seed_device_and_time_whatever_the_order(
    model: Model, asked: list[float], seed: int, device: int
) -> None:
    def ask(at: float) -> Spell:
        return model.spell(seed, f"d{device}", at)

    forwards = {at: ask(at) for at in asked}
    assert {at: ask(at) for at in reversed(asked)} == forwards


@each_model
@settings(max_examples=60, deadline=None)
@given(moments, st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_nothing_changes_within_a_spell(model: Model, at: float, device: int, part: float) -> None:
    spell = model.spell(0, f"d{device}", at)
    assert spell.since <= at < spell.until
    inside = at + part * (min(spell.until, at + DAY) - at)
    if inside < spell.until:
        assert model.spell(0, f"d{device}", inside).online == spell.online
    before = max(spell.since, 0.0)
    assert model.spell(0, f"d{device}", before + part * (at - before)).online == spell.online


STATIONARY = [m for m in MODELS if not (isinstance(m, Churn) and m.life_h)]


@pytest.mark.parametrize("model", STATIONARY, ids=lambda m: f"{m.kind}-{m.share:.2f}")
def test_the_share_of_time_online_is_the_stated_one(model: Model) -> None:
    at = np.random.default_rng(1).uniform(0, 60 * DAY, 4000)
    online = [model.spell(3, f"d{n}", float(t)).online for n, t in enumerate(at)]
    # Four standard deviations of independent draws.
    assert np.mean(online) == pytest.approx(model.share, abs=4 * 0.5 / math.sqrt(len(at)))


@pytest.mark.parametrize("at", [0.0, 7 * HOUR, 40 * DAY])
def test_spells_that_alternate_are_stationary_from_the_first_second(at: float) -> None:
    model = MODELS[-2]
    online = [model.spell(0, f"d{n}", at).online for n in range(4000)]
    assert np.mean(online) == pytest.approx(0.75, abs=4 * 0.5 / math.sqrt(4000))


def test_whole_spells_of_a_pareto_device_have_the_tail_that_is_stated() -> None:
    model = MODELS[-2]
    lengths = []
    for device in range(30):
        found = spells(model, f"d{device}", 10 * HOUR)
        # The first is what is left of one, the last may be cut off by a block.
        lengths += [s.until - s.since for s in found[1:-1] if s.online]
    assert min(lengths) >= 90 - 1e-6
    for factor in (1.5, 2.0, 4.0):
        longer = np.mean([length > 90 * factor for length in lengths])
        expected = factor**-2.5
        assert longer == pytest.approx(expected, abs=5 * math.sqrt(expected / len(lengths)))


@pytest.mark.parametrize("lengths", [Pareto(1.6, 20.0), Pareto(4.0, 20.0), Exponential(50.0)])
def test_what_is_left_of_a_spell_is_that_of_a_random_moment(lengths: Pareto | Exponential) -> None:
    u = (np.arange(400_000) + 0.5) / 400_000
    # P(left <= x) is the mean of min(length, x) over the mean length.
    for quantile in (0.1, 0.3, 0.6, 0.9):
        x = lengths.left(quantile)
        below = np.minimum(lengths.length(u), x).mean() / lengths.mean
        assert below == pytest.approx(quantile, abs=2e-3)


def test_a_night_without_jitter_is_known_by_hand() -> None:
    model = MODELS[1]
    assert model.spell(0, "d", 21.9 * HOUR).online is False
    assert model.spell(0, "d", 22 * HOUR) == Spell(True, 22 * HOUR, 30 * HOUR)
    assert model.spell(0, "d", 29.99 * HOUR).online is True
    assert model.spell(0, "d", 30 * HOUR) == Spell(False, 30 * HOUR, 46 * HOUR)
    # Midnight of the first day falls into the night before.
    assert model.spell(0, "d", 0.0).online is True


def test_each_device_has_a_time_zone_of_its_own() -> None:
    zones = Diurnal(kind="diurnal", source="a test", starts_h=22, hours=8, zones_h=6)
    begins = {zones.spell(0, f"d{n}", 12 * HOUR).until for n in range(50)}
    assert len(begins) == 50
    assert 16 * HOUR < min(begins) < 17 * HOUR
    assert 21 * HOUR < max(begins) <= 22 * HOUR


def test_a_fleet_that_churns_grows_and_then_loses_devices_for_good() -> None:
    model = Churn(kind="churn", source="a test", founders=0.3, joins_h=24, life_h=240)

    def there(day: float) -> float:
        return float(np.mean([model.spell(0, f"d{n}", day * DAY).online for n in range(2000)]))

    assert there(0) == pytest.approx(0.3, abs=0.05)
    # Joined by then, and not yet gone: the convolution of both, by hand.
    joined = 0.3 * math.exp(-0.3) + 0.7 * (math.exp(-0.3) - math.exp(-3)) / (1 - 0.1)
    assert there(3) == pytest.approx(joined, abs=0.05)
    assert there(100) == pytest.approx(0.0, abs=0.01)
    gone = model.spell(0, "d1", 1000 * DAY)
    assert (gone.online, gone.until) == (False, math.inf)


WRONG: list[Callable[[], Model]] = [
    lambda: Always(kind="always", source=""),
    lambda: Diurnal(kind="diurnal", source="x", starts_h=25, hours=8),
    lambda: Diurnal(kind="diurnal", source="x", starts_h=1, hours=20, jitter_h=5),
    lambda: Diurnal(kind="diurnal", source="x", starts_h=1, hours=0),
    lambda: Churn(kind="churn", source="x", founders=0.5),
    lambda: Churn(kind="churn", source="x", stays_h=0),
    lambda: ParetoSpells(
        kind="pareto", source="x", shape=1.0, least_online_s=60, least_offline_s=60
    ),
    lambda: ParetoSpells(
        kind="pareto", source="x", shape=math.nan, least_online_s=60, least_offline_s=60
    ),
]


@pytest.mark.parametrize("make", WRONG)
def test_a_model_that_makes_no_sense_is_refused(make: Callable[[], Model]) -> None:
    with pytest.raises(ValidationError):
        make()

"""A private core when one message takes its device to another base, and back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.private.bases import base_before
from clients.agent.private.record import unpack
from clients.agent.private.settings import Personal
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.continual.growth import carried
from fleet.continual.personal import re_expressed
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, release_message
from tests.clients.agent.answering.moving import Move, growth_of, kernels_of, rebase_of
from tests.clients.agent.private.wearing import ON, Wearer, worn
from tests.clients.agent.serving.factories import layout_of

WAITING = ON.model_copy(update={"min_windows": 1000})
"""Nothing is trained: what is served is the core that was there before."""


@pytest.fixture
def state(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "state"))


@pytest.fixture(scope="module")
def rebase(base: Base, releases: list[Release]) -> Move:
    return rebase_of(base, releases[1])


@pytest.fixture(scope="module")
def growth(base: Base, releases: list[Release]) -> Move:
    return growth_of(base, releases[1])


def core_of(wearer: Wearer) -> CoreState:
    return unpack(wearer.row.payload)


def moved(wearer: Wearer, move: Move) -> None:
    """Move, with the release alone to answer until the core was looked at."""
    wearer.device.ask("query.release", move.message())
    model = wearer.model()
    assert not model.personal
    assert model.digest == wearer.release_digest == kernels_of(move.base, move.release)


def test_after_a_rebase_it_is_re_expressed_and_served_where_it_helps(
    state: Path, turned: Turned, base: Base, rebase: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        core = core_of(wearer)
        moved(wearer, rebase)
        assert wearer.cores.look() == "few-windows"
        row = wearer.row
        expected = re_expressed(core, base, rebase.base, layout_of(rebase.base))
        assert unpack(row.payload).digest == expected.digest
        assert (row.base, row.frame) == (rebase.base.digest, rebase.base.frame_digest)
        [said] = turned.said("personal.fitted")
        assert said == {"base": rebase.base.digest, "before": base.digest}
        assert row.serves
        assert row.judged["loss-after"] < row.judged["loss-before"]
        assert wearer.model().personal
        assert wearer.model().digest != wearer.release_digest
        # The base that it is of now is its own from here on, whatever else is swept.
        kept = base_before(wearer.device.serving.folder, rebase.base.digest)
        assert kept is not None
        assert base_before(wearer.device.serving.folder, base.digest) is None


def test_after_a_growth_it_is_carried_entry_by_entry(
    state: Path, turned: Turned, growth: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        core = core_of(wearer)
        moved(wearer, growth)
        # The release's state is what it was, so that there is nothing to train on it again.
        assert wearer.cores.look() == "current"
        assert core_of(wearer).digest == carried(core, layout_of(growth.base)).digest
        assert core_of(wearer).arrays.keys() == core.arrays.keys()
        assert wearer.row.base == growth.base.digest
        assert wearer.row.serves
        assert wearer.model().personal


@pytest.mark.parametrize("kind", ["rebase", "growth"])
def test_off_the_device_serves_the_exact_digest_of_the_fleets_release_on_the_new_base(
    state: Path, turned: Turned, kind: str, request: pytest.FixtureRequest
) -> None:
    move: Move = request.getfixturevalue(kind)
    with worn(state, turned.world(), WAITING) as wearer:
        moved(wearer, move)
        wearer.cores.look()
        assert wearer.model().personal
        wearer.set(Personal())
        assert wearer.cores.look() == "off"
        model = wearer.model()
        assert (model.personal, model.digest) == (False, kernels_of(move.base, move.release))
        wearer.set(WAITING)
        wearer.cores.look()
        assert wearer.model().personal


def test_a_device_that_starts_again_between_move_and_look_takes_it_along_all_the_same(
    state: Path, turned: Turned, base: Base, rebase: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        core = core_of(wearer)
        moved(wearer, rebase)
    with worn(state, turned.world(), WAITING) as wearer:
        assert wearer.cores.look() == "few-windows"
        expected = re_expressed(core, base, rebase.base, layout_of(rebase.base))
        assert core_of(wearer).digest == expected.digest
    with worn(state, turned.world()) as wearer:
        assert wearer.cores.look() == "trained"
        assert wearer.row.base == rebase.base.digest
        assert len(turned.said("personal.fitted")) == 1


def test_back_on_the_base_before_it_comes_along_too(
    state: Path, turned: Turned, base: Base, releases: list[Release], rebase: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        moved(wearer, rebase)
        wearer.cores.look()
        there = core_of(wearer)
        wearer.device.ask("query.release", release_message(releases[2]))
        assert not wearer.model().personal
        assert wearer.cores.look() == "few-windows"
        expected = re_expressed(there, rebase.base, base, layout_of(base))
        assert core_of(wearer).digest == expected.digest
        assert wearer.row.base == base.digest
        assert turned.said("personal.dropped") == []


def test_it_comes_along_from_a_base_that_the_fleet_has_left_for_good(
    state: Path, turned: Turned, rebase: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        moved(wearer, rebase)
        wearer.cores.look()
        there = core_of(wearer)
        second = rebase_of(rebase.base, rebase.later)
        moved(wearer, second)
        # As a sweep would, once no kept release is of it.
        wearer.device.serving.folder.base_file(rebase.base.digest).unlink()
    with worn(state, turned.world(), WAITING) as wearer:
        assert wearer.cores.look() == "few-windows"
        expected = re_expressed(there, rebase.base, second.base, layout_of(second.base))
        assert core_of(wearer).digest == expected.digest


def test_a_core_is_trained_on_the_new_base_for_its_plans(
    state: Path, turned: Turned, growth: Move
) -> None:
    with worn(state, turned.world()) as wearer:
        moved(wearer, growth)
        wearer.bring(growth.later)
        assert wearer.cores.look() == "trained"
        row = wearer.row
        assert (row.base, row.release) == (growth.base.digest, growth.later.number)
        assert wearer.model().personal is row.serves
        wearer.set(Personal())
        wearer.cores.look()
        assert wearer.model().digest == kernels_of(growth.base, growth.later)


def test_it_needs_no_more_the_base_that_the_device_was_set_up_with(
    state: Path, turned: Turned, rebase: Move
) -> None:
    with worn(state, turned.world(), WAITING) as wearer:
        moved(wearer, rebase)
        wearer.cores.look()
        served = wearer.model().digest
        wearer.device.serving.folder.base.write_bytes(b"no base")
    with worn(state, turned.world(), WAITING) as wearer:
        assert wearer.cores.look() == "few-windows"
        assert (wearer.model().personal, wearer.model().digest) == (True, served)

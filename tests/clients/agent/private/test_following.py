"""A private core follows the fleet to another base: carried, re-expressed, or dropped and said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.private.fitting import fitted
from clients.agent.private.record import unpack
from clients.agent.serving.folder import CURRENT, LAST_GOOD
from clients.agent.serving.serve import Serving
from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, save_base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.continual.growth import carried, grown, rebased
from fleet.continual.personal import re_expressed
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned
from tests.clients.agent.private.wearing import Wearer, worn
from tests.clients.agent.serving.factories import LABELS, chain_of, layout_of, make_base


def moved_to(base: Base, state: Path) -> None:
    """Give a device another base, as the fleet's next one would be installed."""
    folder = Serving(state).folder
    for which in (CURRENT, LAST_GOOD):
        (folder.path / which).unlink(missing_ok=True)
    for old in (folder.releases, folder.served):
        shutil.rmtree(old)
    new = state.parent / "new.safetensors"
    save_base(base, new)
    folder.base.unlink()
    Serving(state).install_base(new)


def turned_frames(base: Base, release: Release) -> Base:
    """A base whose kernels are where a release has brought them, with frames of its own."""
    first = rebased(base, release.state, base.frames)
    return rebased(base, release.state, make_frames(folded_network(first), "svd", 2))


@pytest.fixture
def state(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "state"))


def learned_on(state: Path, turned: Turned) -> CoreState:
    with worn(state, turned.world()) as wearer:
        return unpack(wearer.row.payload)


def looked(wearer: Wearer, release: Release) -> str:
    wearer.serve(release)
    return wearer.cores.look()


def test_after_a_rebase_it_is_re_expressed_judged_and_served_before_it_is_trained_again(
    state: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    core = learned_on(state, turned)
    new = turned_frames(base, releases[1])
    moved_to(new, state)
    with worn(state, turned.world()) as wearer:
        # The last plan was of the same method, so that it is trained there and then as well.
        wearer.set(wearer.device.config[0].personal.model_copy(update={"min_windows": 1000}))
        assert looked(wearer, chain_of(new, 1, step=0.02)[1]) == "few-windows"
        row = wearer.row
        expected = re_expressed(core, base, new, layout_of(new))
        assert unpack(row.payload).digest == expected.digest
        assert (row.base, row.frame) == (new.digest, new.frame_digest)
        assert row.people == {"ada"}
        assert len(turned.said("personal.fitted")) == 1
        assert wearer.model().personal is row.serves
        assert row.judged["loss-after"] < row.judged["loss-before"]
    with worn(state, turned.world()) as wearer:
        assert wearer.cores.look() == "trained"
        assert len(turned.said("personal.fitted")) == 1


def test_when_the_head_grows_it_is_carried_entry_by_entry(
    state: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    core = learned_on(state, turned)
    new = grown(base, (*LABELS, "jump"), seed=3)
    moved_to(new, state)
    with worn(state, turned.world()) as wearer:
        wearer.set(wearer.device.config[0].personal.model_copy(update={"min_windows": 1000}))
        looked(wearer, chain_of(new, 1, step=0.02)[1])
        assert unpack(wearer.row.payload).digest == carried(core, layout_of(new)).digest
        assert wearer.row.base == new.digest
        assert wearer.model().personal is wearer.row.serves


def test_what_cannot_be_taken_along_is_dropped_with_its_reason_and_the_next_begins_at_nothing(
    state: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    learned_on(state, turned)
    shutil.rmtree(Serving(state).folder.own / "base")
    new = turned_frames(base, releases[1])
    moved_to(new, state)
    with worn(state, turned.world()) as wearer:
        assert looked(wearer, chain_of(new, 1, step=0.02)[1]) == "dropped"
        assert turned.said("personal.dropped")[0]["reason"] == "personal-base-missing"
        assert wearer.device.store.personal.get() is None
        assert not wearer.model().personal
        assert wearer.cores.look() == "trained"


def core_of(base: Base) -> CoreState:
    return chain_of(base, 1)[1].state


@pytest.mark.parametrize("known", [True, False])
def test_classes_that_have_moved_and_frames_that_are_gone_are_refused(known: bool) -> None:
    old = make_base()
    labels = ("sit", "walk", *LABELS[2:])
    record = old.record.model_copy(update={"labels": labels})
    moved = Base(record, old.arrays, old.frames)
    other = make_base(seed=5)
    wanted, new = ("labels-moved", moved) if known else ("personal-base-missing", other)
    with pytest.raises(MismatchError) as caught:
        fitted(core_of(old), old.frame_digest, old if known else None, new, layout_of(new))
    assert caught.value.code == wanted


def test_on_its_own_base_it_is_itself_and_nothing_is_no_core() -> None:
    base = make_base()
    core, layout = core_of(base), layout_of(base)
    same = fitted(core, base.frame_digest, base, base, layout)
    assert same.digest == core.digest
    with pytest.raises(MismatchError, match="nothing of it"):
        fitted(CoreState.zero(layout), base.frame_digest, base, base, layout)


def test_another_network_is_no_place_for_it() -> None:
    old = make_base()
    model = old.record.model.model_copy(update={"channels": 6})
    new = Base(old.record.model_copy(update={"model": model}), old.arrays, old.frames)
    with pytest.raises(MismatchError) as caught:
        fitted(core_of(old), old.frame_digest, old, new, layout_of(old))
    assert caught.value.code == "other-architecture"


def test_a_core_goes_to_a_grown_base_and_back_bit_for_bit() -> None:
    base = make_base()
    more = grown(base, (*LABELS, "jump"), seed=3)
    layout = layout_of(base)
    core = core_of(base)
    up = fitted(core, base.frame_digest, base, more, layout_of(more))
    down = fitted(up, more.frame_digest, more, base, layout)
    assert (up.digest, down.digest) == (core.digest, core.digest)

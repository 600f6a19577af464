"""Own statistics are of one base: on another they are void, and taken anew of the same windows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.agent.answering.packing import pack_update
from clients.agent.calibrating.kept import kept_of
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.private.settings import Personal
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.personal import personal_of
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import Turned, release_message, train_message
from tests.clients.agent.answering.moving import Move, growth_of, kernels_of, rebase_of
from tests.clients.agent.calibrating.changed import LEARN, changed, right, wearing
from tests.clients.agent.private.wearing import Wearer


@pytest.fixture(scope="module")
def move(base: Base, releases: list[Release]) -> Move:
    return rebase_of(base, releases[1])


def statistics_of(wearer: Wearer) -> tuple[str, str]:
    """Return the base that the kept statistics are of, and their digest."""
    kept = kept_of(wearer.device.store)
    assert kept is not None
    return kept.base, kept.digest


def test_on_another_base_they_are_void_and_taken_anew_and_help_as_before(
    labelled: Path, turned: Turned, base: Base, releases: list[Release], move: Move
) -> None:
    with wearing(labelled, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
        before = statistics_of(wearer)
        assert before[0] == base.digest
        helped = right(wearer.model())
        wearer.device.ask("query.release", move.message())
        footing = wearer.device.agent.statistics.footing()
        assert (footing.digest, footing.bench.base.digest) == ("", move.base.digest)
        assert wearer.model().digest == kernels_of(move.base, move.release)
        alone = right(wearer.model())
        wearer.cores.look()
        assert statistics_of(wearer)[0] == move.base.digest
        note = personal_of(wearer.device.serving.folder)
        assert note is not None
        assert note.statistics == statistics_of(wearer)[1] != before[1]
        # A rebase is at the very place of the release: so is what they do for it.
        assert right(wearer.model()) == pytest.approx(helped, abs=0.05)
        assert helped > alone


def test_off_the_exact_digest_of_the_release_on_the_new_base_is_served(
    particular: Path, turned: Turned, base: Base, releases: list[Release]
) -> None:
    move = growth_of(base, releases[1])
    with wearing(particular, turned.world(), personal=LEARN) as wearer:
        wearer.bring(releases[1])
        assert wearer.cores.look() == "trained"
        wearer.device.ask("query.release", move.message())
        wearer.cores.look()
        assert wearer.row.base == statistics_of(wearer)[0] == move.base.digest
        assert wearer.model().personal
        changed(wearer, statistics=OwnStatistics(), personal=Personal())
        assert wearer.cores.look() == "off"
        model = wearer.model()
        assert (model.personal, model.digest) == (False, kernels_of(move.base, move.release))


def test_a_training_under_them_is_that_of_a_device_that_never_had_another_base(
    labelled: Path,
    installed: Path,
    turned: Turned,
    releases: list[Release],
    move: Move,
    tmp_path: Path,
) -> None:
    other = Path(shutil.copytree(labelled, tmp_path / "hand"))
    shutil.rmtree(other / "model")
    save_base(move.base, tmp_path / "new.safetensors")
    Serving(other).install_base(tmp_path / "new.safetensors")
    with wearing(labelled, turned.world()) as wearer:
        wearer.bring(releases[1])
        wearer.device.ask("query.release", move.message())
        found = wearer.device.ask("train", train_message(move.later))
        wearer.cores.look()
        model = wearer.model()
    with wearing(other, Turned().world()) as wearer:
        wanted = wearer.device.ask("train", train_message(move.later))
        assert pack_update(found) == pack_update(wanted)
        wearer.cores.look()
        assert DeviceModel(other).digest == model.digest


def test_they_are_taken_anew_after_a_restart_and_on_the_way_back(
    labelled: Path, turned: Turned, base: Base, releases: list[Release], move: Move
) -> None:
    with wearing(labelled, turned.world()) as wearer:
        wearer.serve(releases[1])
        wearer.cores.look()
        before = statistics_of(wearer)
        wearer.device.ask("query.release", move.message())
    with wearing(labelled, turned.world()) as wearer:
        assert wearer.device.agent.statistics.footing().digest == ""
        wearer.cores.look()
        assert statistics_of(wearer)[0] == move.base.digest
        wearer.device.ask("query.release", release_message(releases[1]))
        wearer.cores.look()
        # Of the same windows on the same base, they are the same.
        assert statistics_of(wearer) == before
        assert wearer.model().personal

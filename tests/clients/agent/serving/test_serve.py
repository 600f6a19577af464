"""Taking, merging, probing and swapping releases."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, save_base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.network import folded_network, parameters_of
from fleet.adapt.state import CoreState
from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.records import Plan
from fleet.federate.releases import Release, catch_up
from fleet.federate.served import load_merged, save_merged
from fleet.federate.wire import Payload, encode_plan
from tests.clients.agent.serving.factories import (
    chain_of,
    layout_of,
    make_base,
    promoted,
)
from tests.fleet.federate.factories import make_plan


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_an_installed_base_is_served_bit_for_bit(serving: Serving, base: Base) -> None:
    assert serving.held.base.digest == base.digest
    assert serving.served is not None
    assert serving.served.number == 0
    assert serving.served.digest == digest_arrays(parameters_of(folded_network(base)))


def test_installing_the_same_base_again_changes_nothing(
    serving: Serving, base_file: Path, releases: list[Release]
) -> None:
    promoted(serving.folder.path.parent, releases[1])
    before = names_in(serving.folder.path)
    outcome = serving.install_base(base_file)
    assert (outcome.swapped, outcome.reason) == (False, "already-installed")
    assert outcome.served is not None
    assert outcome.served.number == 1
    assert names_in(serving.folder.path) == before


def test_another_base_is_refused_for_life(serving: Serving, tmp_path: Path) -> None:
    save_base(make_base(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match="set up with base") as refused:
        serving.install_base(tmp_path / "other.safetensors")
    assert refused.value.code == "other-base"


def test_what_is_served_has_the_digest_that_the_server_merges_to(
    serving: Serving, base: Base, releases: list[Release], tmp_path: Path
) -> None:
    outcome = serving.promote(serving.take(releases[2]))
    assert (outcome.swapped, outcome.reason, outcome.number) == (True, "promoted", 2)
    assert outcome.served is not None
    assert outcome.served.digest == save_merged(base, releases[2], tmp_path / "merged.safetensors")
    assert outcome.served.release == releases[2].digest
    assert outcome.served.state == releases[2].state.digest


def test_the_served_file_is_a_merged_model_like_the_operators(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    kept = promoted(serving.folder.path.parent, releases[1])
    network, about = load_merged(serving.folder.served_file(kept.name))
    assert serving.served is not None
    assert digest_arrays(parameters_of(network)) == serving.served.digest
    assert about == base.record


def test_a_device_that_missed_50_releases_needs_one_message_and_ends_in_the_same_digest(
    installed: Path, base: Base, tmp_path: Path
) -> None:
    releases = chain_of(base, 50, step=0.01)
    faithful = Serving(Path(shutil.copytree(installed, tmp_path / "faithful")))
    absent = Serving(Path(shutil.copytree(installed, tmp_path / "absent")))
    sizes = set()
    for release in releases[1:]:
        message = catch_up(release)
        sizes.add(message.array.nbytes)
        assert faithful.promote(faithful.catch_up(message, "core")).swapped
    last = catch_up(releases[-1])
    assert sizes == {last.array.nbytes} == {4 * layout_of(base).size}
    assert absent.promote(absent.catch_up(last, "core")).swapped
    assert absent.served == faithful.served
    assert absent.served is not None
    assert absent.served.state == releases[-1].state.digest


def test_a_message_a_plan_and_a_file_bring_the_same_release(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    release = releases[3]
    plan: Plan = make_plan(
        base=base.digest,
        frame=base.frame_digest,
        layout=layout_of(base).digest,
        release=3,
        state=release.state.digest,
        method="core",
    )
    by_plan = serving.take_plan(plan, encode_plan(plan, release.state))
    by_message = serving.catch_up(catch_up(release), "core")
    assert by_plan.name == by_message.name
    assert not by_message.published
    by_file = serving.take(release)
    assert by_file.name == by_plan.name
    # Of a release known by its own digest no later message makes one known less.
    again = serving.catch_up(catch_up(release), "core")
    assert again.published == serving.held.kept(3).published == release.digest
    assert serving.folder.release_names() == [by_plan.name]


def test_a_plan_with_another_state_is_refused(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    plan = make_plan(base=base.digest, frame=base.frame_digest, release=3, method="core")
    with pytest.raises(MismatchError) as refused:
        serving.take_plan(plan, encode_plan(plan, releases[3].state))
    assert refused.value.code == "wrong-state"


@pytest.mark.parametrize("number", ["3", -1, 1.5, True])
def test_a_catch_up_message_without_a_number_is_refused(
    serving: Serving, releases: list[Release], number: object
) -> None:
    message = catch_up(releases[1])
    skewed = Payload(message.array, {**message.config, "release": number})  # type: ignore[dict-item]
    with pytest.raises(MismatchError) as refused:
        serving.catch_up(skewed, "core")
    assert refused.value.code == "release-number"


def test_releases_of_another_base_or_with_nan_are_not_taken(
    serving: Serving, releases: list[Release]
) -> None:
    other = chain_of(make_base(seed=1), 1)[1]
    nan = CoreState.from_flat(
        releases[1].state.layout, np.full(releases[1].state.layout.size, np.nan, np.float32)
    )
    for release, code in (
        (other, "base-missing"),
        (replace(releases[1], frame="0" * 64), "wrong-frame"),
        (replace(releases[1], state=nan), "state-not-finite"),
    ):
        with pytest.raises(MismatchError) as refused:
            serving.take(release)
        assert refused.value.code == code
    assert serving.folder.release_names() == []


def test_going_back_and_forward_again_serves_the_same_bits(
    serving: Serving, releases: list[Release]
) -> None:
    seen = {}
    for release in releases[1:]:
        promoted(serving.folder.path.parent, release)
        path = serving.folder.served_file(serving.served.name)  # type: ignore[union-attr]
        seen[release.number] = path.read_bytes()
    for number in (1, 3, 2, 4, 1):
        assert serving.promote(serving.held.kept(number)).swapped
        assert serving.served is not None
        assert serving.folder.served_file(serving.served.name).read_bytes() == seen[number]


def test_going_back_to_0_is_the_base(serving: Serving, releases: list[Release]) -> None:
    base_pointer = serving.served
    promoted(serving.folder.path.parent, releases[1])
    assert serving.promote(serving.held.kept(0)).swapped
    assert serving.served == base_pointer


def test_the_one_before_is_kept_whole_as_last_known_good(
    serving: Serving, releases: list[Release]
) -> None:
    for release in releases[1:]:
        before = serving.served
        promoted(serving.folder.path.parent, release)
        assert serving.last_good == before
        assert before is not None
        assert serving.served is not None
        files = names_in(serving.folder.served)
        assert files == sorted(f"{p.name}.safetensors" for p in (before, serving.served))


def test_serving_what_is_served_changes_nothing(serving: Serving, releases: list[Release]) -> None:
    kept = promoted(serving.folder.path.parent, releases[1])
    before, last_good = serving.folder.identity(), serving.last_good
    outcome = serving.promote(kept)
    assert (outcome.swapped, outcome.reason) == (False, "already-served")
    assert (serving.folder.identity(), serving.last_good) == (before, last_good)


def test_a_bounded_number_of_releases_is_kept_and_never_without_the_served_ones(
    state: Path, releases: list[Release]
) -> None:
    serving = Serving(state, keep=2)
    served = serving.take(releases[1])
    serving.promote(served)
    for release in releases[2:]:
        serving.take(release)
    numbers = [int(name.split("-")[0]) for name in serving.folder.release_names()]
    assert numbers == [1, 3, 4]
    back = serving.take(releases[2])  # the oldest but one, and just taken
    assert serving.held.kept(2).state.digest == back.state.digest


def test_a_device_keeps_at_least_one_release(state: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        Serving(state, keep=0)


def test_a_release_that_overflows_the_kernels_is_refused(
    serving: Serving, releases: list[Release]
) -> None:
    layout = releases[1].state.layout
    huge = CoreState.from_flat(layout, np.full(layout.size, 3e38, np.float32))
    before = serving.served
    outcome = serving.promote(serving.take(replace(releases[1], state=huge)))
    assert not outcome.swapped
    assert outcome.reason in ("merge-overflow", "served-not-finite")
    assert serving.served == before


def test_served_kernels_that_were_changed_on_disk_are_merged_again(
    serving: Serving, releases: list[Release]
) -> None:
    first = promoted(serving.folder.path.parent, releases[1])
    promoted(serving.folder.path.parent, releases[2])
    path = serving.folder.served_file(first.name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"\0" * 8)
    assert serving.promote(first).swapped
    assert path.read_bytes() == whole


def test_without_a_base_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as absent:
        _ = Serving(tmp_path).held.base
    assert (absent.value.code, "init --base" in absent.value.hint) == ("no-base", True)
    release = chain_of(make_base(), 1)[1]
    with pytest.raises(StorageError) as unmade:
        Serving(tmp_path).promote(KeptRelease.of_release(release))
    assert unmade.value.code == "no-model"


def test_two_writers_take_turns_and_the_wait_is_bounded(
    serving: Serving, state: Path, releases: list[Release]
) -> None:
    other = Serving(state, lock_wait_s=0.05)
    with serving.locked(), pytest.raises(StorageError, match=r"0\.05 s") as busy:
        other.take(releases[1])
    assert busy.value.code == "model-busy"
    assert other.take(releases[1]).number == 1


@pytest.mark.parametrize("wanted", [7, "7", "000009", "ff"])
def test_a_release_that_is_not_kept_is_named_with_those_that_are(
    serving: Serving, releases: list[Release], wanted: int | str
) -> None:
    kept = serving.take(releases[1])
    with pytest.raises(InputError, match=kept.name) as absent:
        serving.held.kept(wanted)
    assert absent.value.code == "no-such-release"
    assert serving.held.kept(kept.name[:10]).name == kept.name

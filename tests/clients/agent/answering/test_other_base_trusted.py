"""Another base is taken only with a release of it that a pinned key signed, or as it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cryptography")

from clients.agent.answering.releases import WANTED
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.serve import Serving
from fleet.adapt.base import Base, bytes_of_base, save_base
from fleet.errors import FleetError
from fleet.federate.releases import Release, first_release
from fleet.federate.signing import key_id, public_of
from fleet.federate.wire import BASE_BUNDLE, with_base
from tests.clients.agent.answering.devices import Device, Turned, opened, release_message
from tests.clients.agent.answering.moving import (
    Move,
    files_of,
    kernels_of,
    later_bases,
    rebase_of,
)
from tests.clients.agent.answering.signed import (
    KEY,
    NOTHING,
    OTHER,
    flipped,
    message,
    refused,
    trust,
    with_config,
)
from tests.clients.agent.serving.factories import layout_of, make_base


@pytest.fixture(scope="module")
def move(base: Base, releases: list[Release]) -> Move:
    return rebase_of(base, releases[2])


def along(move: Move, release: Release, key: bytes | None = KEY) -> Any:
    return with_base(message("query.release", release, key), move.content)


def test_an_unsigned_release_is_refused_and_neither_it_nor_its_base_is_kept(
    pinned: Device, state: Path, move: Move
) -> None:
    for kind, code in (("query.release", "unsigned-release"), ("evaluate", "wrong-base")):
        assert refused(pinned, kind, along(move, move.release, None)).code == code
    assert later_bases(state) == []
    assert not Serving(state).folder.bases.exists()
    health = pinned.ask("query.health", NOTHING).config
    assert health["counter.releases-refused.unsigned-release"] == 1


def test_a_signed_release_is_taken_and_so_is_its_base(
    pinned: Device, state: Path, move: Move
) -> None:
    refused(pinned, "query.release", along(move, move.release, None))
    status = pinned.ask("query.release", along(move, move.release)).config
    assert status["serves"] == kernels_of(move.base, move.release)
    assert later_bases(state) == [f"{move.base.digest[:16]}.safetensors"]
    assert pinned.serving.held.kept(3).signed_by == key_id(public_of(KEY))
    pinned.ask("train", message("train", move.later))
    pinned.ask("evaluate", message("evaluate", move.later))


def test_a_signature_of_another_key_or_with_a_flipped_bit_is_refused(
    pinned: Device, state: Path, move: Move
) -> None:
    good = along(move, move.release)
    for bad in (
        along(move, move.release, OTHER),
        with_config(good, signature=flipped(str(good.config["signature"]))),
        with_config(good, release=4),
    ):
        assert refused(pinned, "query.release", bad).code == "bad-signature"
        assert later_bases(state) == []


@pytest.mark.parametrize("number", [0, 5])
def test_an_unmoved_release_of_another_base_is_no_less_than_any_other(
    pinned: Device, state: Path, number: int
) -> None:
    other = make_base(seed=5)
    bare = replace(first_release(other, "core", layout_of(other)), number=number)
    unmoved = Move(other, bare)
    error = refused(pinned, "query.release", along(unmoved, bare, None))
    assert error.code == "unsigned-release"
    assert later_bases(state) == []
    assert pinned.ask("query.release", along(unmoved, bare)).config["release"] == number


def test_the_owners_own_base_needs_no_signature_also_from_another(
    pinned: Device, move: Move, releases: list[Release]
) -> None:
    pinned.ask("query.release", along(move, move.release))
    status = pinned.ask("query.release", message("query.release", releases[0], None)).config
    assert status["release"] == 0


def test_a_base_that_its_owner_added_by_hand_is_no_release_of_it(
    pinned: Device, state: Path, move: Move, tmp_path: Path
) -> None:
    save_base(move.base, tmp_path / "new.safetensors")
    assert pinned.serving.add_base(tmp_path / "new.safetensors")
    error = refused(pinned, "query.release", release_message(move.release))
    assert error.code == "unsigned-release"
    pinned.ask("query.release", message("query.release", move.release))
    assert pinned.serving.held.base.digest == move.base.digest


@pytest.mark.parametrize("key", [None, KEY])
def test_another_base_than_the_signed_one_is_refused(
    pinned: Device, state: Path, move: Move, key: bytes | None
) -> None:
    swapped = with_config(
        along(move, move.release, key), **{BASE_BUNDLE: bytes_of_base(make_base(seed=5))}
    )
    assert refused(pinned, "query.release", swapped).code == "wrong-bundle"
    # Also where the message names it: the signature covers the name.
    renamed = with_config(swapped, base=make_base(seed=5).digest)
    assert refused(pinned, "query.release", renamed).code != "wrong-bundle"
    assert later_bases(state) == []


def test_a_release_that_was_refused_is_not_taken_later_because_its_base_was_seen(
    pinned: Device, turned: Turned, state: Path, move: Move
) -> None:
    refused(pinned, "query.release", along(move, move.release, None))
    error = refused(pinned, "query.release", release_message(move.release))
    assert error.code == "unsigned-release"
    with opened(state, turned.world()) as again:
        trust(again, state, KEY)
        error = refused(again, "query.release", message("query.release", move.release))
        assert error.code == "base-missing"


def test_what_was_wanted_of_another_base_before_a_key_was_pinned_is_served_no_more(
    state: Path, turned: Turned, move: Move
) -> None:
    unmoved = KeptRelease(
        0,
        move.base.digest,
        move.base.frame_digest,
        "core",
        first_release(move.base, "core", layout_of(move.base)).state,
    )
    with opened(state, turned.world()) as device:
        device.serving.held.bases.try_on(move.base)
        device.store.state.put(WANTED, device.serving._take(unmoved).name)
    with opened(state, turned.world()) as device:
        trust(device, state, KEY)
        device.agent.finish()
        assert turned.said("release.kept")[-1]["reason"] == "unsigned-release"
        assert device.store.state.get(WANTED) is None
        assert device.serving.held.bases.is_first(device.serving.held.base.digest)


def framed(base: Base, change: str) -> Base:
    """A base whose frames do not fit its network; its digests are right all the same."""
    frames = dict(base.frames)
    layer, frame = next(iter(frames.items()))
    wrong = {
        "nowhere": {"nowhere": frame},
        "cut": {layer: replace(frame, array=frame.array[:, :, :-3])},
        "rank": {layer: replace(frame, rank=frame.rank + 1)},
        "groups": {layer: replace(frame, groups=2)},
        "kind": {layer: replace(frame, kind="tt")},
        "not finite": {layer: replace(frame, array=frame.array * np.float32(np.nan))},
    }
    return replace(base, frames=MappingProxyType(frames | wrong[change]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("nowhere", "base-unsound"),
        ("cut", "base-unsound"),
        ("rank", "base-damaged"),
        ("groups", "base-damaged"),
        ("kind", "base-damaged"),
        ("not finite", "base-unsound"),
    ],
)
def test_a_base_whose_frames_do_not_fit_is_refused_with_a_reason_and_not_kept(
    device: Device, state: Path, move: Move, change: str, code: str
) -> None:
    wrong = framed(move.base, change)
    release = replace(move.release, base=wrong.digest, frame=wrong.frame_digest)
    before = files_of(state)
    with pytest.raises(FleetError) as why:
        device.ask("query.release", Move(wrong, release).message())
    assert why.value.code == code
    assert files_of(state) == before
    assert device.ask("query.release", move.message()).config["release"] == 3


def rearranged(base: Base, change: str) -> Base:
    arrays = dict(base.arrays)
    name = "conv1.weight"
    if change == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name][:-1]
    return replace(base, arrays=MappingProxyType(arrays))


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_a_base_whose_arrays_do_not_fit_is_refused_with_a_reason_and_not_kept(
    device: Device, state: Path, move: Move, change: str
) -> None:
    wrong = rearranged(move.base, change)
    release = replace(move.release, base=wrong.digest)
    with pytest.raises(FleetError) as why:
        device.ask("query.release", Move(wrong, release).message())
    assert why.value.code == "base-weights"
    assert later_bases(state) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"junk" * 1000, "a text", 7, True, b"\xff" * 8 + b"{}"]
)
def test_what_is_no_base_is_refused_and_the_device_goes_on(
    pinned: Device, state: Path, move: Move, content: Any
) -> None:
    junk = with_config(along(move, move.release), **{BASE_BUNDLE: content})
    assert refused(pinned, "query.release", junk).code == "bundle-damaged"
    assert later_bases(state) == []
    pinned.ask("query.release", along(move, move.release))


@pytest.mark.parametrize("at", range(40, 500_000, 83_000))
def test_a_base_of_which_a_bit_was_flipped_is_refused(
    device: Device, state: Path, move: Move, at: int
) -> None:
    content = bytearray(move.content)
    content[at] ^= 4
    with pytest.raises(FleetError) as why:
        device.ask("query.release", with_config(move.message(), **{BASE_BUNDLE: bytes(content)}))
    assert why.value.code in ("base-damaged", "bundle-damaged", "bundle-format", "wrong-bundle")
    assert later_bases(state) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"[0.5", b"[NaN"), (b"[2.0", b"[NaN"), (b"[2.0", b"[3.0"), (b"[2.0", b"[0.0")],
)
def test_a_base_whose_record_was_changed_is_refused(
    device: Device, state: Path, move: Move, old: bytes, new: bytes
) -> None:
    content = move.content.replace(old, new, 1)
    assert content != move.content
    with pytest.raises(FleetError) as why:
        device.ask("query.release", with_config(move.message(), **{BASE_BUNDLE: content}))
    assert why.value.code == "base-damaged"
    assert later_bases(state) == []


@pytest.mark.parametrize("name", ["", "../base", "/etc/passwd", "x" * 5000, "\0", 7])
def test_a_message_that_names_no_base_is_told_that_it_is_missing(
    device: Device, move: Move, name: Any
) -> None:
    with pytest.raises(FleetError) as why:
        device.ask("query.release", with_config(release_message(move.release), base=name))
    assert why.value.code == "base-missing"

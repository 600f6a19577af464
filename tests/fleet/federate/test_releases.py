from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.adapt.base import Base
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError, StorageError
from fleet.federate.aggregate import PartialSum, quantise
from fleet.federate.releases import (
    Release,
    catch_up,
    first_release,
    follow,
    load_release,
    next_release,
    save_release,
)
from fleet.federate.wire import Payload
from tests.fleet.federate.factories import LAYOUT, make_base

BASE = make_base()
DEVICES = 4
seeds = st.integers(0, 2**32 - 1)


def deltas(seed: int, round_number: int) -> list[tuple[np.ndarray[Any, Any], int]]:
    random = np.random.default_rng([seed, round_number])
    return [
        (quantise(random.normal(size=LAYOUT.size).astype(np.float32)), int(weight))
        for weight in random.integers(1, 4096, DEVICES)
    ]


def chain(seed: int, length: int, order: tuple[int, ...] = tuple(range(DEVICES))) -> list[Release]:
    releases = [first_release(BASE, "core", LAYOUT)]
    for number in range(1, length + 1):
        added, arrived = PartialSum.empty(LAYOUT.size), deltas(seed, number)
        for index in order:
            added = added.add(*arrived[index])
        releases.append(next_release(releases[-1], added.mean(), {"round": number}))
    return releases


def test_release_0_is_the_base_unmoved() -> None:
    first = first_release(BASE, "core", LAYOUT)
    assert (first.number, first.parent, first.base) == (0, "", BASE.digest)
    assert not first.state.flat().any()


@settings(max_examples=20)
@given(seeds)
def test_the_digest_of_a_chain_does_not_depend_on_the_order_of_arrival(seed: int) -> None:
    ends = {
        chain(seed, 3, order)[-1].digest
        for order in itertools.islice(itertools.permutations(range(DEVICES)), 0, None, 5)
    }
    assert len(ends) == 1


def test_each_release_names_its_parent() -> None:
    releases = chain(0, 3)
    for parent, child in itertools.pairwise(releases):
        assert child.parent == parent.digest
        assert child.number == parent.number + 1
    assert len({release.digest for release in releases}) == 4


@settings(max_examples=20)
@given(seeds, st.integers(1, 6))
def test_catching_up_once_ends_where_following_every_release_ends(seed: int, length: int) -> None:
    releases = chain(seed, length)
    followed = [follow(BASE, LAYOUT, catch_up(release)) for release in releases]
    assert followed[-1].digest == releases[-1].state.digest
    message = catch_up(releases[-1])
    assert follow(BASE, LAYOUT, message).digest == followed[-1].digest


def test_a_catch_up_message_has_one_size_for_every_release() -> None:
    messages = [catch_up(release) for release in chain(1, 5)]
    assert {message.array.nbytes for message in messages} == {4 * LAYOUT.size}
    assert {len(json.dumps(dict(message.config))) for message in messages} == {
        len(json.dumps(dict(messages[0].config)))
    }


@settings(max_examples=20)
@given(seeds, st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_going_back_and_forward_again_returns_the_same_digest(seed: int, path: list[int]) -> None:
    releases = chain(seed, 4)
    for number in path:
        served = follow(BASE, LAYOUT, catch_up(releases[number]))
        assert served.digest == releases[number].state.digest


def test_after_a_rollback_numbers_go_on_and_the_parent_is_the_release_rolled_back_to() -> None:
    releases = chain(0, 3)
    mean = np.ones(LAYOUT.size, np.int64)
    forked = next_release(releases[1], mean, {}, number=releases[3].number + 1)
    assert (forked.number, forked.parent) == (4, releases[1].digest)
    assert forked.digest != next_release(releases[3], mean, {}).digest


@pytest.mark.parametrize("number", [1, 2, -1])
def test_a_number_that_was_used_is_refused(number: int) -> None:
    with pytest.raises(MismatchError, match="ascend") as refused:
        next_release(chain(0, 2)[2], np.zeros(LAYOUT.size, np.int64), {}, number=number)
    assert refused.value.code == "release-number"


def test_a_release_moves_its_parent_by_the_mean_in_float64_and_rounds_once() -> None:
    start = CoreState.from_flat(LAYOUT, np.full(LAYOUT.size, 0.1, np.float32))
    parent = Release(1, BASE.digest, BASE.frame_digest, "p", "core", start)
    child = next_release(parent, np.full(LAYOUT.size, 3 << 31, np.int64), {})
    wanted = np.float32(float(np.float32(0.1)) + 1.5)
    assert child.state.flat().tolist() == [float(wanted)] * LAYOUT.size
    assert child.state.flat().dtype == np.float32


def test_provenance_is_no_part_of_the_digest_and_all_else_is() -> None:
    state = CoreState.zero(LAYOUT)
    moved = CoreState.from_flat(LAYOUT, np.ones(LAYOUT.size, np.float32))
    fields: list[Any] = [1, "b", "f", "p", "core", state]
    release = Release(*fields)
    assert Release(*fields, provenance={"devices": {"a": 1}}).digest == release.digest
    for place, other in enumerate([2, "x", "x", "x", "head", moved]):
        changed = [*fields[:place], other, *fields[place + 1 :]]
        assert Release(*changed).digest != release.digest


def test_a_saved_release_comes_back_equal(tmp_path: Path) -> None:
    release = chain(2, 2)[-1]
    save_release(release, tmp_path / "r.safetensors")
    back = load_release(tmp_path / "r.safetensors")
    assert back.digest == release.digest
    assert dict(back.provenance) == {"round": 2}
    assert back.state.layout == release.state.layout
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    release = chain(2, 1)[-1]
    save_release(release, tmp_path / "a.safetensors")
    save_release(release, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_release_with_one_changed_bit_of_state_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_release(chain(0, 1)[-1], path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError) as refused:
        load_release(path)
    assert refused.value.code == "release-damaged"


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_release_cut_short_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "r.safetensors"
    save_release(chain(0, 1)[-1], path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError) as refused:
        load_release(path)
    assert refused.value.code == "bundle-damaged"


def test_a_release_whose_number_was_changed_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_release(chain(0, 1)[-1], path)
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = content[8 : 8 + length].replace(rb"\"number\":1", rb"\"number\":2")
    assert header != content[8 : 8 + length]
    path.write_bytes(content[:8] + header + content[8 + length :])
    with pytest.raises(StorageError, match="carries digest") as refused:
        load_release(path)
    assert refused.value.code == "release-damaged"


def test_a_file_that_is_missing_or_something_else_is_told_apart(tmp_path: Path) -> None:
    from fleet.adapt.base import save_base

    with pytest.raises(StorageError) as missing:
        load_release(tmp_path / "none.safetensors")
    save_base(BASE, tmp_path / "base.safetensors")
    with pytest.raises(MismatchError) as other:
        load_release(tmp_path / "base.safetensors")
    assert (missing.value.code, other.value.code) == ("bundle-missing", "bundle-format")


@pytest.mark.parametrize("other", [make_base(rank=3), make_base(fill=1.0)])
def test_following_a_release_of_another_base_is_refused(other: Base) -> None:
    with pytest.raises(MismatchError) as refused:
        follow(other, LAYOUT, catch_up(chain(0, 1)[-1]))
    assert refused.value.code == "wrong-base"


def test_following_a_release_in_other_frames_is_refused() -> None:
    message = catch_up(chain(0, 1)[-1])
    skewed = Payload(message.array, {**message.config, "frame": "0" * 64})
    with pytest.raises(MismatchError) as refused:
        follow(BASE, LAYOUT, skewed)
    assert refused.value.code == "wrong-frame"


def test_following_a_release_of_another_layout_of_the_same_size_is_refused() -> None:
    twin = Layout.of({"head.weight": (LAYOUT.size,)})
    with pytest.raises(MismatchError) as refused:
        follow(BASE, twin, catch_up(chain(0, 1)[-1]))
    assert refused.value.code == "wrong-layout"

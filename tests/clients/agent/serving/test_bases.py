"""Moving to another base: one message brings it, and what is served says which is in use."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.agent.serving.folder import CURRENT, LAST_GOOD
from clients.agent.serving.inventory import list_bases, verify
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.probe import Probe
from clients.agent.serving.records import Pointer, Promotion
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, bytes_of_base, save_base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.network import folded_network
from fleet.continual.growth import carried_release, grown, rebased, rebased_release
from fleet.errors import FleetError, MismatchError
from fleet.federate.releases import Release, catch_up
from fleet.federate.served import merge_release
from fleet.federate.wire import BASE_BUNDLE, Payload, with_base
from tests.clients.agent.serving.factories import (
    LABELS,
    chain_of,
    layout_of,
    make_base,
    probabilities_of,
    raw_windows,
)


@pytest.fixture(scope="module")
def renewed(base: Base, releases: list[Release]) -> tuple[Base, Release]:
    """The base made anew of release 2, and the release of it that serves what that did."""
    moved = rebased(base, releases[2].state, base.frames)
    new = replace(moved, frames=make_frames(folded_network(moved), "svd", 2))
    return new, rebased_release(releases[2], new, layout_of(new))


def bring(serving: Serving, release: Release, base: Base | None = None) -> Promotion:
    message = catch_up(release)
    if base is not None:
        message = with_base(message, bytes_of_base(base))
    return serving.promote(serving.catch_up(message, release.method))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kernels_of(base: Base, release: Release) -> str:
    return digest_arrays(merge_release(base, release))


def test_a_release_of_a_base_that_is_not_there_is_declined_and_nothing_is_written(
    serving: Serving, renewed: tuple[Base, Release]
) -> None:
    before = files_of(serving.folder.path)
    with pytest.raises(MismatchError) as declined:
        bring(serving, renewed[1])
    assert declined.value.code == "base-missing"
    assert files_of(serving.folder.path) == before


def test_one_message_brings_a_device_to_the_release_of_another_base(
    serving: Serving, renewed: tuple[Base, Release], base: Base
) -> None:
    new, release = renewed
    outcome = bring(serving, release, new)
    assert (outcome.swapped, outcome.reason, outcome.number) == (True, "promoted", 3)
    assert outcome.served is not None
    assert outcome.served.digest == kernels_of(new, release)
    assert outcome.served.base == new.digest
    for look in (serving, Serving(serving.folder.path.parent)):
        assert look.held.base.digest == new.digest
        assert look.held.bases.first.digest == base.digest
        assert look.held.layout("core").digest == layout_of(new).digest


def test_a_device_answers_on_the_new_base_what_it_answered_before(
    serving: Serving, renewed: tuple[Base, Release], base: Base, releases: list[Release]
) -> None:
    bring(serving, releases[2])
    model = DeviceModel(serving.folder.path.parent)
    x = raw_windows(16)
    before = model.predict(x)[1]
    bring(serving, renewed[1], renewed[0])
    labels, after = model.predict(x)
    np.testing.assert_allclose(after, before, atol=1e-4)
    np.testing.assert_allclose(after, probabilities_of(base, releases[2], x), atol=1e-4)
    assert model.served.number == 3
    assert set(labels) <= set(LABELS)


def test_back_and_forward_again_need_no_base_along_and_end_in_the_same_digests(
    serving: Serving, renewed: tuple[Base, Release], base: Base, releases: list[Release]
) -> None:
    new, release = renewed
    bring(serving, releases[2])
    at_first = serving.served
    bring(serving, release, new)
    moved = serving.served
    assert bring(serving, releases[2]).swapped
    assert serving.served == at_first
    assert serving.held.base.digest == base.digest
    assert bring(serving, release).swapped
    assert serving.served == moved


def test_a_release_of_the_new_base_moves_its_kernels(
    serving: Serving, renewed: tuple[Base, Release]
) -> None:
    new, release = renewed
    later = replace(chain_of(new, 1)[1], number=release.number + 1)
    bring(serving, release, new)
    outcome = bring(serving, later)
    assert outcome.served is not None
    assert outcome.served.digest == kernels_of(new, later)


def test_a_grown_base_serves_the_same_kernels_and_further_classes(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    new = grown(base, (*LABELS, "jump"), seed=1)
    release = carried_release(releases[2], new, layout_of(new))
    bring(serving, releases[2])
    bring(serving, release, new)
    model = DeviceModel(serving.folder.path.parent)
    assert model.about.labels == (*LABELS, "jump")
    assert serving.served is not None
    assert serving.served.digest == kernels_of(new, release)


def unlike(base: Base, what: str) -> Base:
    record = base.record
    changes: dict[str, dict[str, object]] = {
        "channels": {"channels": (*record.channels[:2], ("acc_z", "g"))},
        "rate": {"rate_hz": 25.0},
        "stride": {"stride": record.stride + 1},
        "first classes": {"labels": ("sit", "walk", *LABELS[2:])},
    }
    return replace(base, record=record.model_copy(update=changes[what]))


@pytest.mark.parametrize("what", ["channels", "rate", "stride", "first classes"])
def test_a_base_of_other_windows_or_classes_is_refused_and_not_kept(
    serving: Serving, base: Base, what: str
) -> None:
    other = unlike(base, what)
    release = replace(chain_of(other, 1)[1], number=5)
    before = files_of(serving.folder.path)
    with pytest.raises(MismatchError, match=what) as refused:
        bring(serving, release, other)
    assert refused.value.code == "base-unlike"
    assert files_of(serving.folder.path) == before


def unsound(base: Base, what: str) -> Base:
    layer, frame = next(iter(base.frames.items()))
    first = next(iter(base.arrays))
    changed: dict[str, Base] = {
        "layer": replace(base, frames={**base.frames, "nowhere": frame}),
        "rank": replace(base, frames={**base.frames, layer: replace(frame, rank=9)}),
        "nan": replace(base, arrays={**base.arrays, first: base.arrays[first] * np.nan}),
        "shape": replace(base, arrays={**base.arrays, first: base.arrays[first][:1]}),
    }
    return changed[what]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("layer", "base-unsound"),
        ("rank", "base-damaged"),
        ("nan", "base-unsound"),
        ("shape", "base-weights"),
    ],
)
def test_a_base_that_is_none_is_refused_with_a_reason(
    serving: Serving, base: Base, what: str, code: str
) -> None:
    release = replace(chain_of(base, 1)[1], number=5)
    other = unsound(base, what)
    message = catch_up(replace(release, base=other.digest, frame=other.frame_digest))
    before = files_of(serving.folder.path)
    with pytest.raises(FleetError) as refused:
        serving.catch_up(with_base(message, bytes_of_base(other)), "core")
    assert refused.value.code == code
    assert files_of(serving.folder.path) == before


def test_another_release_of_the_number_and_state_of_one_that_is_served_is_refused(
    serving: Serving,
) -> None:
    one, other = make_base(seed=5), make_base(seed=6)
    for base in (one, other):
        release = replace(chain_of(base, 0)[0], number=5)
        if base is one:
            bring(serving, release, base)
            before = files_of(serving.folder.path)
            continue
        with pytest.raises(MismatchError) as refused:
            bring(serving, release, base)
        assert refused.value.code == "release-number"
    assert files_of(serving.folder.path) == before


def test_a_base_in_use_stays_in_memory_whatever_comes(serving: Serving) -> None:
    in_use = make_base(seed=1)
    bring(serving, replace(chain_of(in_use, 1)[1], number=1), in_use)
    for seed in range(2, 8):
        serving.held.bases.try_on(make_base(seed=seed))
    serving.folder.base_file(in_use.digest).unlink()
    assert serving.held.base.digest == in_use.digest


def test_a_base_that_is_not_the_releases_is_refused(
    serving: Serving, renewed: tuple[Base, Release]
) -> None:
    with pytest.raises(MismatchError) as refused:
        bring(serving, renewed[1], make_base(seed=3))
    assert refused.value.code == "wrong-bundle"


@pytest.mark.parametrize("content", [b"", b"junk", "text", 7])
def test_what_is_no_base_is_refused_with_a_reason(
    serving: Serving, renewed: tuple[Base, Release], content: str | bytes | int
) -> None:
    message = catch_up(renewed[1])
    message = Payload(message.array, {**message.config, BASE_BUNDLE: content})
    before = files_of(serving.folder.path)
    with pytest.raises(FleetError) as refused:
        serving.catch_up(message, "core")
    assert refused.value.code == "bundle-damaged"
    assert files_of(serving.folder.path) == before


def test_a_base_is_kept_only_once_its_release_was_vouched_for(
    serving: Serving, renewed: tuple[Base, Release]
) -> None:
    def doubt(_: object) -> object:
        raise MismatchError("bad-signature", "nobody knows it", "")

    message = with_base(catch_up(renewed[1]), bytes_of_base(renewed[0]))
    before = files_of(serving.folder.path)
    with pytest.raises(MismatchError):
        serving.catch_up(message, "core", doubt)  # type: ignore[arg-type]
    assert files_of(serving.folder.path) == before


def test_the_probe_judges_each_model_on_windows_normalised_as_its_base_asks(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    # The same function of raw windows: what is normalised otherwise is weighed otherwise.
    record = base.record
    arrays = {name: np.array(array) for name, array in base.arrays.items()}
    first = next(name for name in arrays if arrays[name].ndim == 3)
    arrays[first] = arrays[first] * 4.0
    wide = record.model_copy(update={"std": tuple(4.0 * s for s in record.std)})
    new = replace(base, record=wide, arrays=arrays)
    new = replace(new, frames=make_frames(folded_network(new), "svd", 2))
    release = rebased_release(releases[0], new, layout_of(new))
    x = raw_windows(40)
    y = probabilities_of(base, releases[0], x).argmax(dim=1).numpy()
    message = with_base(catch_up(release), bytes_of_base(new))
    kept = serving.catch_up(message, "core")
    outcome = serving.promote(kept, Probe.of_raw(record, x, y))
    assert outcome.probe is not None
    assert (outcome.probe.before, outcome.probe.after) == (1.0, 1.0)
    assert outcome.swapped


def test_a_probe_keeps_a_device_from_a_base_that_is_worse(
    serving: Serving, base: Base, releases: list[Release]
) -> None:
    other = make_base(seed=5)
    release = rebased_release(releases[0], other, layout_of(other))
    x = raw_windows(60)
    y = probabilities_of(base, releases[0], x).argmax(dim=1).numpy()
    kept = serving.catch_up(with_base(catch_up(release), bytes_of_base(other)), "core")
    outcome = serving.promote(kept, Probe.of_raw(base.record, x, y))
    assert (outcome.swapped, outcome.reason) == (False, "probe-fell")
    assert serving.held.base.digest == base.digest


def test_a_base_whose_file_is_damaged_is_left_at_start_up_and_taken_again(
    serving: Serving, renewed: tuple[Base, Release], releases: list[Release], base: Base
) -> None:
    new, release = renewed
    bring(serving, releases[2])
    bring(serving, release, new)
    moved = serving.served
    serving.folder.base_file(new.digest).write_bytes(b"no base")
    assert any(row.problem for row in list_bases(serving))
    again = Serving(serving.folder.path.parent)
    recovery = recover(again)
    assert (recovery.source, recovery.served.number) == ("last-good", 2)
    assert again.held.base.digest == base.digest
    with pytest.raises(MismatchError) as declined:
        bring(again, release)
    assert declined.value.code == "base-missing"
    assert bring(again, release, new).swapped
    assert again.served == moved
    assert not [check for check in verify(again) if check.problem]


def test_a_device_on_a_later_base_is_brought_the_first_again_when_that_is_damaged(
    serving: Serving, renewed: tuple[Base, Release], releases: list[Release], base: Base
) -> None:
    new, release = renewed
    bring(serving, releases[2])
    at_first = serving.served
    bring(serving, release, new)
    serving.folder.base.write_bytes(b"no base")
    again = Serving(serving.folder.path.parent)
    assert bring(again, replace(chain_of(new, 1)[1], number=4)).swapped
    with pytest.raises(MismatchError) as declined:
        bring(again, releases[2])
    assert declined.value.code == "base-missing"
    assert bring(again, releases[2], base).swapped
    assert at_first is not None
    assert again.served is not None
    assert again.served.digest == at_first.digest
    other = make_base(seed=1)
    assert bring(again, replace(chain_of(other, 1)[1], number=6), other).swapped


def test_kernels_that_were_lost_are_merged_again_from_their_own_base(
    serving: Serving, renewed: tuple[Base, Release]
) -> None:
    new, release = renewed
    bring(serving, release, new)
    moved = serving.served
    for which in (CURRENT, LAST_GOOD):
        pointer = serving.folder.pointer(which)
        assert pointer is not None
        serving.folder.served_file(pointer.name).unlink()
    recovery = recover(Serving(serving.folder.path.parent))
    assert (recovery.source, recovery.served) == ("merged-again", moved)


def test_a_base_goes_when_no_kept_release_is_of_it(state: Path, base: Base) -> None:
    serving = Serving(state, keep=2)
    bases = [make_base(seed=seed) for seed in (1, 2)]
    for number, new in enumerate(bases, start=1):
        bring(serving, replace(chain_of(new, 1)[1], number=number), new)
    assert {row.digest for row in list_bases(serving)} == {base.digest, *(b.digest for b in bases)}
    for number in (3, 4, 5):
        bring(serving, replace(chain_of(bases[1], 1)[1], number=number))
    assert [row.digest for row in list_bases(serving)] == [base.digest, bases[1].digest]
    # Nothing is of the second any more, but it was the last that came.
    for number in (6, 7, 8):
        bring(serving, replace(chain_of(base, 1)[1], number=number))
    assert [row.use for row in list_bases(serving)] == ["in use", ""]


def test_a_base_that_was_added_waits_for_its_release(
    serving: Serving,
    renewed: tuple[Base, Release],
    releases: list[Release],
    tmp_path: Path,
    base: Base,
) -> None:
    new, release = renewed
    save_base(new, tmp_path / "new.safetensors")
    assert serving.add_base(tmp_path / "new.safetensors")
    assert not serving.add_base(tmp_path / "new.safetensors")
    assert serving.held.base.digest == base.digest
    for each in releases[1:]:
        bring(serving, each)
    assert bring(serving, release).swapped


def test_a_pointer_of_the_first_base_is_written_as_before_there_were_others(
    serving: Serving, renewed: tuple[Base, Release], releases: list[Release]
) -> None:
    bring(serving, releases[1])
    written = json.loads((serving.folder.path / CURRENT).read_text())
    assert sorted(written) == ["digest", "number", "release", "state"]
    bring(serving, renewed[1], renewed[0])
    assert json.loads((serving.folder.path / CURRENT).read_text())["base"] == renewed[0].digest
    assert Pointer.model_validate(written).base == ""


def test_a_base_in_use_is_read_once(
    serving: Serving, renewed: tuple[Base, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(serving, renewed[1], renewed[0])
    serving = Serving(serving.folder.path.parent)
    assert serving.held.base is serving.held.base
    os.unlink(serving.folder.base_file(renewed[0].digest))
    assert serving.held.base.digest == renewed[0].digest

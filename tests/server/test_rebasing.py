"""Which release of another base goes on where a release is, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fleet.adapt.base import Base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.frames import Frame
from fleet.adapt.network import folded_network, with_parameters
from fleet.continual.growth import ROUNDING, grown
from fleet.errors import FleetError, MismatchError
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from server.rebasing import check_same, rebase
from tests.fleet.continual.bases import make_base, state_of, windows_of
from tests.server.standing.two_bases import made_from, more_of, shaken

BASE = make_base()


def released(base: Base = BASE, method: str = "core+head", size: float = 0.05) -> Release:
    state = state_of(base, method, size)
    return Release(7, base.digest, base.frame_digest, "ab" * 32, method, state)


def logits(base: Base, release: Release) -> torch.Tensor:
    network = with_parameters(folded_network(base), merge_release(base, release))
    with torch.no_grad():
        return network(torch.from_numpy(windows_of(16)))  # type: ignore[no-any-return]


def with_record(base: Base, **changes: Any) -> Base:
    return replace(base, record=base.record.model_copy(update=changes))


@pytest.mark.parametrize("method", ["core", "core+head", "bias"])
def test_a_base_made_from_the_release_serves_what_the_release_served(method: str) -> None:
    old = released(method=method)
    new = made_from(BASE, old.state)
    made = rebase(BASE, old, new, number=12)
    assert (made.kind, made.labels, made.same) == ("rebased", (), True)
    assert made.difference is not None
    assert 0 < made.difference <= ROUNDING
    release = made.release
    assert (release.number, release.parent, release.base) == (12, old.digest, new.digest)
    assert release.state.norm == 0.0
    torch.testing.assert_close(logits(new, release), logits(BASE, old), rtol=1e-3, atol=1e-3)
    check_same(made)


def test_a_grown_base_carries_the_release_over_bit_for_bit() -> None:
    old = released()
    new = more_of(BASE, "stairs", "cycle")
    made = rebase(BASE, old, new, number=8, provenance={"order": 3})
    assert (made.kind, made.labels, made.difference) == ("grown", ("stairs", "cycle"), 0.0)
    assert made.release.state.norm == pytest.approx(old.state.norm)
    before, after = merge_release(BASE, old), merge_release(new, made.release)
    after = {n: a[:4] if n.startswith("head.") else a for n, a in after.items()}
    assert digest_arrays(after) == digest_arrays(before)
    assert made.release.provenance["grown-from"] == BASE.digest
    assert made.release.provenance["order"] == 3
    check_same(made)


def test_a_base_with_more_classes_and_other_frames_carries_no_core_over() -> None:
    more = more_of(BASE, "stairs")
    turned = {name: replace(frame, array=-frame.array) for name, frame in more.frames.items()}
    made = rebase(BASE, released(size=0.0), replace(more, frames=turned), number=8)
    assert (made.kind, made.labels, made.difference) == ("rebased", ("stairs",), 0.0)
    moved = rebase(BASE, released(), replace(more, frames=turned), number=8)
    assert (moved.kind, moved.same) == ("rebased", False)


def test_a_base_that_is_rebased_and_grown_is_compared_on_the_old_classes() -> None:
    old = released()
    new = more_of(made_from(BASE, old.state), "stairs")
    made = rebase(BASE, old, new, number=8)
    assert (made.kind, made.labels, made.same) == ("rebased", ("stairs",), True)
    assert made.release.state.norm == 0.0


def head_moved(base: Base) -> Base:
    """More classes, but an old class reads something else."""
    more = grown(base, (*base.record.labels, "stairs"), seed=0)
    arrays = {name: np.array(array) for name, array in more.arrays.items()}
    arrays["head.bias"][0] += 1.0
    return replace(more, arrays=arrays)


def scaled(base: Base) -> Base:
    """The same kernels behind another normalisation."""
    return with_record(base, std=tuple(2 * each for each in base.record.std))


def broken(base: Base) -> Base:
    arrays = {name: np.array(array) for name, array in base.arrays.items()}
    arrays["head.weight"][0, 0] = np.nan
    return replace(base, arrays=arrays)


@pytest.mark.parametrize("other", [shaken, head_moved, scaled, broken])
def test_a_base_that_serves_something_else_is_another_network(
    other: Callable[[Base], Base],
) -> None:
    still = released(size=0.0)
    made = rebase(BASE, still, other(BASE), number=8)
    assert (made.kind, made.same) == ("rebased", False)
    with pytest.raises(MismatchError, match="another network") as refused:
        check_same(made)
    assert refused.value.code == "another-network"
    assert "--another-network" in refused.value.hint


def test_another_architecture_cannot_be_compared() -> None:
    made = rebase(BASE, released(), make_base(name="t-resnet"), number=8)
    assert (made.difference, made.same) == (None, False)
    with pytest.raises(MismatchError, match="another architecture"):
        check_same(made)


def test_a_base_of_the_first_base_is_another_network_once_the_fleet_has_learned() -> None:
    old = released()
    made = rebase(BASE, old, made_from(BASE, released(size=0.0).state, rank=1), number=8)
    assert not made.same
    assert made.difference is not None
    assert made.difference > 0.01


CHANNELS = (("x", "m/s^2"), ("y", "m/s^2"), ("z", "g"))


@pytest.mark.parametrize(
    ("other", "code", "told"),
    [
        (BASE, "already-there", BASE.digest[:12]),
        (with_record(BASE, rate_hz=25.0), "other-rate", "has 25, the fleet's has 50"),
        (with_record(BASE, stride=8), "other-stride", "has 8, the fleet's has 16"),
        (with_record(BASE, channels=CHANNELS), "other-channels", "z (g), the fleet's has x"),
        (
            with_record(BASE, labels=("run", "lie", "sit", "walk")),
            "labels-moved",
            "lie, run, sit, walk come first",
        ),
        (
            with_record(BASE, labels=("lie", "run", "sit", "stand")),
            "labels-moved",
            "lie, run, sit, stand",
        ),
    ],
)
def test_a_base_for_other_devices_or_classes_is_refused(other: Base, code: str, told: str) -> None:
    with pytest.raises(MismatchError) as refused:
        rebase(BASE, released(), other, number=8)
    assert refused.value.code == code
    assert told in refused.value.message
    assert refused.value.hint


def test_a_base_of_more_classes_than_devices_take_is_refused() -> None:
    most = tuple(f"class-{number}" for number in range(252))
    assert rebase(BASE, released(), more_of(BASE, *most), number=8).kind == "grown"
    with pytest.raises(MismatchError, match="at most 256 classes") as refused:
        rebase(BASE, released(), more_of(BASE, *most, "one-more"), number=8)
    assert refused.value.code == "too-many-classes"


def test_a_base_with_another_window_is_refused() -> None:
    record = BASE.record
    model = record.model.model_copy(update={"window": 64})
    with pytest.raises(MismatchError) as refused:
        rebase(BASE, released(), with_record(BASE, window=64, model=model), number=8)
    assert refused.value.code == "other-window"


def test_a_base_whose_frames_are_of_other_layers_is_unusable_and_never_a_crash() -> None:
    frame = next(iter(BASE.frames.values()))
    other = replace(BASE, frames={"nowhere": frame})
    with pytest.raises(MismatchError) as refused:
        rebase(BASE, released(), other, number=8)
    assert refused.value.code == "base-unusable"
    wide = Frame(frame.kind, frame.rank, frame.groups, np.zeros((2, 99), np.float32))
    first = next(iter(BASE.frames))
    with pytest.raises(FleetError):
        rebase(BASE, released(), replace(BASE, frames={**BASE.frames, first: wide}), number=8)


def test_a_method_that_nobody_knows_here_is_refused() -> None:
    odd = replace(released(), method="sparse")
    with pytest.raises(FleetError) as refused:
        rebase(BASE, odd, shaken(BASE), number=8)
    assert refused.value.code == "unknown-method"


def test_the_number_is_free_and_never_before_the_parents() -> None:
    with pytest.raises(MismatchError) as refused:
        rebase(BASE, released(), shaken(BASE), number=7)
    assert refused.value.code == "release-number"

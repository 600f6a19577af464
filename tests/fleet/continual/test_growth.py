from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fleet.adapt.attach import make_frames
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.continual.growth import carried, carried_release, grown, rebased, rebased_release
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.peft.registry import find
from tests.fleet.continual.bases import make_base, state_of, windows_of

MORE = ("lie", "run", "sit", "walk", "stairs", "cycle")


def served(base: object, state: CoreState) -> torch.nn.Module:
    network = folded_network(base)  # type: ignore[arg-type]
    merged = merge(parameters_of(network), base.frames, state)  # type: ignore[attr-defined]
    return with_parameters(network, merged)


def test_a_grown_base_is_the_same_whoever_grows_it() -> None:
    one, two = (grown(make_base(), MORE, seed=4) for _ in range(2))
    assert one.digest == two.digest != make_base().digest
    assert one.frame_digest == make_base().frame_digest
    assert one.record.labels == MORE


def test_a_carried_release_serves_old_classes_as_before() -> None:
    base = make_base()
    new, state = grown(base, MORE, seed=0), state_of(base)
    layout = find("core+head").layout(folded_network(new), new.frames)
    x = torch.from_numpy(windows_of(16))
    with torch.no_grad():
        before = served(base, state)(x)
        after = served(new, carried(state, layout))(x)
    torch.testing.assert_close(after[:, :4], before, rtol=1e-5, atol=1e-5)


def test_a_carried_release_follows_the_old_one() -> None:
    base = make_base()
    new, state = grown(base, MORE, seed=0), state_of(base)
    layout = find("core+head").layout(folded_network(new), new.frames)
    old = Release(7, base.digest, base.frame_digest, "", "core+head", state)
    moved = carried_release(old, new, layout)
    assert (moved.number, moved.parent, moved.base) == (8, old.digest, new.digest)


@pytest.mark.parametrize("make", [carried_release, rebased_release])
def test_a_release_of_a_new_base_takes_a_number_that_is_free_and_none_before_its_parents(
    make: Callable[..., Release],
) -> None:
    base = make_base()
    state = state_of(base, "core")
    old = Release(7, base.digest, base.frame_digest, "", "core", state)
    new = grown(base, MORE, seed=0)
    assert make(old, new, state.layout).number == 8
    assert make(old, new, state.layout, number=12).number == 12
    with pytest.raises(MismatchError, match="7 cannot follow 7") as caught:
        make(old, new, state.layout, number=7)
    assert caught.value.code == "release-number"


def test_old_classes_cannot_change_their_indices() -> None:
    with pytest.raises(MismatchError) as caught:
        grown(make_base(), ("run", "lie", "sit", "walk", "stairs"), seed=0)
    assert caught.value.code == "labels-moved"


def test_a_state_never_loses_an_entry_by_growing() -> None:
    base = make_base()
    smaller = find("core").layout(folded_network(base), base.frames)
    with pytest.raises(MismatchError) as caught:
        carried(state_of(base), smaller)
    assert caught.value.code == "layout-shrunk"


@pytest.mark.parametrize("method", ["core", "core+head", "bias", "full"])
@pytest.mark.parametrize("model", ["small-cnn", "t-resnet"])
def test_a_rebased_base_is_where_the_release_was(method: str, model: str) -> None:
    base = make_base(name=model)
    state = state_of(base, method)
    network = served(base, state)
    new = rebased(base, state, make_frames(network, "svd", 2))
    x = torch.from_numpy(windows_of(8))
    with torch.no_grad():
        torch.testing.assert_close(folded_network(new)(x), network(x), rtol=1e-3, atol=1e-3)
    assert new.digest != base.digest


def test_a_base_that_nothing_moved_keeps_its_arrays() -> None:
    base = make_base()
    new = rebased(base, state_of(base, size=0.0), base.frames)
    for name, array in base.arrays.items():
        np.testing.assert_array_equal(new.arrays[name], array)
    assert new.digest == base.digest


def test_a_channel_that_a_norm_silenced_cannot_be_rebased() -> None:
    base = make_base()
    silent = {k: np.array(v) for k, v in base.arrays.items()}
    name = next(k for k in silent if k.endswith("running_var")).replace("running_var", "weight")
    silent[name][0] = 0.0
    broken = replace(base, arrays=silent)
    with pytest.raises(MismatchError) as caught:
        rebased(broken, state_of(broken), base.frames)
    assert caught.value.code == "cannot-unfold"

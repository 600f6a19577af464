from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, bytes_of_base
from fleet.adapt.frames import FrameKind
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.continual.growth import ROUNDING, carried_release, rebased, rebased_release
from fleet.errors import FleetError, FrameError, InputError, MismatchError
from fleet.federate.releases import Release
from fleet.har.dataset import Channel, select_labels
from fleet.har.population import Population, windows_of
from fleet.peft.registry import find
from server.prepare import normalisation_of, reframe, renewed_frames
from server.rebasing import rebase as server_rebase
from simulations.rebasing import LARGEST_LABEL, MOST_CLASSES, grow, rebase
from tests.fleet.continual.bases import state_of


def release_of(base: Base, method: str = "core+head", size: float = 0.05) -> Release:
    state = state_of(base, method, size=size)
    return Release(12, base.digest, base.frame_digest, "parent", method, state)


def served(base: Base, release: Release) -> torch.nn.Module:
    """What a device computes with."""
    network = folded_network(base)
    return with_parameters(network, merge(parameters_of(network), base.frames, release.state))


@pytest.mark.parametrize(
    ("method", "kind", "rank"),
    [("core", None, None), ("core+head", "tt", 3), ("lora", "random", 2), ("full", None, 1)],
)
def test_a_device_serves_of_the_new_base_without_a_core_what_it_served_of_the_old_release(
    tiny_base: Base, tiny_people: Population, method: str, kind: FrameKind | None, rank: int | None
) -> None:
    release = release_of(tiny_base, method)
    made = rebase(tiny_base, release, tiny_people, kind=kind, rank=rank)
    layout = find(method).layout(folded_network(made.base), made.base.frames)
    follower = rebased_release(release, made.base, layout)
    before, after = served(tiny_base, release), served(made.base, follower)
    furthest = 0.0
    own = parameters_of(after)
    for name, values in parameters_of(before).items():
        scale = np.abs(values).max()
        furthest = max(furthest, float(np.abs(own[name].astype(np.float64) - values).max() / scale))
    assert furthest == made.apart <= ROUNDING
    x = torch.from_numpy(
        windows_of(tiny_people, tiny_people.fleet, normalisation_of(tiny_base)).x[:32]
    )
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-4)
        unmoved = folded_network(tiny_base)(x)
    assert float((unmoved - before(x)).detach().abs().max()) > 1e-2
    assert made.moved


def test_frames_are_those_that_a_simulated_fleet_goes_on_with(
    tiny_base: Base, tiny_people: Population
) -> None:
    release = release_of(tiny_base)
    moved = rebased(tiny_base, release.state, tiny_base.frames)
    made = rebase(tiny_base, release, tiny_people).base
    assert made.digest == renewed_frames(moved, tiny_people).digest
    assert made.frame_digest != tiny_base.frame_digest
    assert made.record == tiny_base.record


@pytest.mark.parametrize(("kind", "rank"), [("tt", None), ("people", 3), (None, 4)])
def test_frames_of_another_kind_or_rank_are_those_of_a_reframed_base(
    tiny_base: Base, tiny_people: Population, kind: FrameKind | None, rank: int | None
) -> None:
    people = replace(tiny_people, source=tiny_people.source[:1])
    release = release_of(tiny_base)
    moved = rebased(tiny_base, release.state, tiny_base.frames)
    made = rebase(tiny_base, release, people, kind=kind, rank=rank, seed=5)
    wanted = reframe(moved, people, kind or "svd", rank or 2, seed=5)
    assert made.base.digest == wanted.digest
    assert made.people == people.source


def test_layers_of_different_ranks_keep_theirs(tiny_base: Base, tiny_people: Population) -> None:
    frames = make_frames(folded_network(tiny_base), "svd", {"conv1": 1, "conv3": 2})
    mixed = replace(tiny_base, frames=frames)
    made = rebase(mixed, release_of(mixed), tiny_people)
    assert {name: frame.rank for name, frame in made.base.frames.items()} == {
        "conv1": 1,
        "conv3": 2,
    }
    assert made.base.record.rank == 2
    alike = rebase(mixed, release_of(mixed), tiny_people, rank=1)
    assert {name: frame.rank for name, frame in alike.base.frames.items()} == dict.fromkeys(
        ("conv1", "conv2", "conv3"), 1
    )
    assert alike.base.record.rank == 1


def test_the_same_seed_makes_the_same_bytes(tiny_base: Base, tiny_people: Population) -> None:
    people = replace(tiny_people, source=tiny_people.source[:1])
    one, again, other = (
        bytes_of_base(
            rebase(tiny_base, release_of(tiny_base), people, kind="gradient", seed=seed).base
        )
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_release_that_moves_nothing_gives_frames_alone(
    tiny_base: Base, tiny_people: Population
) -> None:
    release = release_of(tiny_base, size=0.0)
    made = rebase(tiny_base, release, tiny_people, kind="tt")
    assert (made.moved, made.apart) == (False, 0.0)
    for name, values in tiny_base.arrays.items():
        np.testing.assert_array_equal(made.base.arrays[name], values)
    # The tiny base's own frames were calibrated on the same people.
    assert rebase(tiny_base, release, tiny_people).base.digest == tiny_base.digest


def test_the_server_takes_both_for_what_they_are(tiny_base: Base, tiny_people: Population) -> None:
    release = release_of(tiny_base)
    made = rebase(tiny_base, release, tiny_people, kind="tt")
    moved = server_rebase(tiny_base, release, made.base, number=13)
    assert (moved.kind, moved.same) == ("rebased", True)
    assert moved.difference == pytest.approx(made.apart, rel=1e-3)
    more = server_rebase(tiny_base, release, grow(tiny_base, ["row"]), number=13)
    assert (more.kind, more.labels, more.same) == ("grown", ("row",), True)
    both = server_rebase(tiny_base, release, grow(made.base, ["row"]), number=13)
    assert (both.kind, both.labels, both.same) == ("rebased", ("row",), True)


def test_steps_are_told_as_they_are_done(tiny_base: Base, tiny_people: Population) -> None:
    told: list[str] = []
    rebase(tiny_base, release_of(tiny_base), tiny_people, on_step=told.append)
    assert told == ["kernels", "frames"]


def refused(
    base: Base, release: Release, people: Population, **asked: Any
) -> tuple[type[FleetError], str]:
    with pytest.raises(FleetError) as caught:
        rebase(base, release, people, **asked)
    return type(caught.value), caught.value.code


def test_a_release_of_another_base_or_method_is_refused(
    tiny_base: Base, tiny_people: Population
) -> None:
    release = release_of(tiny_base)
    other = grow(tiny_base, ["row"])
    assert refused(other, release, tiny_people) == (MismatchError, "wrong-base")
    framed = replace(release, frame=other.digest)
    assert refused(tiny_base, framed, tiny_people) == (MismatchError, "wrong-frame")
    foreign = replace(release, method="dora")
    assert refused(tiny_base, foreign, tiny_people) == (MismatchError, "no-core-state")
    less = replace(release, method="core+bias")
    assert refused(tiny_base, less, tiny_people) == (MismatchError, "wrong-layout")
    narrow = {n: a[:, :1] if n.endswith(".core") else a for n, a in release.state.arrays.items()}
    cut = replace(release, state=CoreState.of(narrow))
    assert refused(tiny_base, cut, tiny_people) == (MismatchError, "wrong-layout")


def test_a_rank_that_no_layer_can_have_is_refused_before_anything_is_learned(
    tiny_base: Base, tiny_people: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **more: object) -> None:
        raise AssertionError("learned")

    monkeypatch.setattr("simulations.rebasing.frame_sources", never)
    asked = {"kind": "people", "rank": 31}
    release = release_of(tiny_base)
    assert refused(tiny_base, release, tiny_people, **asked) == (FrameError, "rank-too-large")


def test_a_learned_frame_of_people_without_windows_is_refused(
    tiny_base: Base, tiny_people: Population
) -> None:
    nobody = replace(tiny_people, source=())
    found, code = refused(tiny_base, release_of(tiny_base), nobody, kind="people")
    assert (issubclass(found, InputError), code) == (True, "no-windows")


def test_data_of_other_channels_windows_rates_or_classes_are_refused(
    tiny_base: Base, tiny_people: Population
) -> None:
    data = tiny_people.dataset
    turned = tuple(Channel(c.name, "g") for c in data.channels)
    moved = select_labels(data, (data.labels[1], data.labels[0], *data.labels[2:]))
    for other in (
        replace(data, channels=turned),
        replace(data, window=data.window + 1),
        replace(data, rate_hz=data.rate_hz / 2),
        replace(data, labels=(*data.labels, "row")),
        moved,
    ):
        people = replace(tiny_people, dataset=other)
        found = refused(tiny_base, release_of(tiny_base), people)
        assert found == (MismatchError, "base-data")


def test_a_grown_base_is_rebased_on_data_that_have_its_first_classes_only(
    tiny_base: Base, tiny_people: Population
) -> None:
    more = grow(tiny_base, ["row", "hop"])
    people = replace(tiny_people, source=tiny_people.source[:1])
    made = rebase(more, release_of(more), people, kind="gradient")
    assert made.base.record.labels == (*tiny_base.record.labels, "row", "hop")
    assert made.apart <= ROUNDING


def test_a_grown_base_keeps_old_classes_to_the_bit(
    tiny_base: Base, tiny_people: Population
) -> None:
    new = grow(tiny_base, ["row", "hop"], seed=3)
    old, count = tiny_base.record, len(tiny_base.record.labels)
    assert new.record.labels == (*old.labels, "row", "hop")
    assert new.frame_digest == tiny_base.frame_digest
    for name, values in tiny_base.arrays.items():
        kept = new.arrays[name][:count] if name.startswith("head.") else new.arrays[name]
        assert kept.tobytes() == values.tobytes(), name
    # Old logits, as a device computes them that sums in the same order for any number of classes.
    windows = windows_of(tiny_people, tiny_people.fleet, normalisation_of(tiny_base)).x[:16]
    before, after = (exact_logits(base, windows) for base in (tiny_base, new))
    assert after[:, :count].tobytes() == before.tobytes()
    # A network that has learned nothing of them does not name the new ones.
    assert set(after.argmax(axis=1)) <= set(range(count))


def exact_logits(base: Base, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    network = folded_network(base)
    features: list[torch.Tensor] = []
    network.get_submodule("head").register_forward_hook(
        lambda module, inputs, output: features.append(inputs[0])
    )
    with torch.no_grad():
        network(torch.from_numpy(x))
        weight, bias = (network.get_parameter(f"head.{name}") for name in ("weight", "bias"))
        rows = [(features[0] * row).sum(dim=1) + b for row, b in zip(weight, bias, strict=True)]
    logits: np.ndarray[Any, Any] = torch.stack(rows, dim=1).numpy()
    return logits


def test_a_grown_base_takes_the_release_over_and_is_the_same_for_the_same_seed(
    tiny_base: Base,
) -> None:
    one, again, other = (bytes_of_base(grow(tiny_base, ["row"], seed=s)) for s in (0, 0, 1))
    assert one == again != other
    new, release = grow(tiny_base, ["row"]), release_of(tiny_base)
    layout = find(release.method).layout(folded_network(new), new.frames)
    follower = carried_release(release, new, layout)
    assert (follower.base, follower.parent) == (new.digest, release.digest)


def test_every_name_that_cannot_be_a_new_class_is_told_at_once(tiny_base: Base) -> None:
    there = tiny_base.record.labels[2]
    bad = [there, "", "  ", " row", "two\nlines", "x" * (LARGEST_LABEL + 1), "hop", "hop"]
    with pytest.raises(InputError) as caught:
        grow(tiny_base, bad)
    assert caught.value.code == "bad-label"
    told = caught.value.message
    for part in (f"{there!r} is there already", "'' is empty", "'  ' is empty", "' row' begins"):
        assert part in told
    for part in ("'two\\nlines' begins", f"… has {LARGEST_LABEL + 1}", "'hop' is named twice"):
        assert part in told
    assert told.count("; ") == 6
    assert grow(tiny_base, ["x" * LARGEST_LABEL]).record.labels[-1] == "x" * LARGEST_LABEL
    with pytest.raises(InputError, match="there is none"):
        grow(tiny_base, [])


def test_no_base_grows_beyond_what_an_answer_can_count(tiny_base: Base) -> None:
    room = MOST_CLASSES - len(tiny_base.record.labels)
    most = grow(tiny_base, [f"class {n}" for n in range(room)])
    assert most.record.model.classes == MOST_CLASSES == 256
    for base, count in ((tiny_base, room + 1), (most, 1)):
        with pytest.raises(InputError, match="256 classes") as caught:
            grow(base, [f"more {n}" for n in range(count)])
        assert caught.value.code == "too-many-classes"

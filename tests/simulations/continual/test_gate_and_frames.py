"""Which releases are served, and when a base is made anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent import continual as continual_module
from clients.agent.continual import ContinualDevice, DeviceMemory, Labelled
from clients.agent.continual_memory import arrival_ids, source_of
from clients.agent.learner import Workbench
from clients.agent.probing import PROBE_WINDOWS, for_probe, set_aside
from fleet.adapt.base import load_base
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of
from fleet.continual.growth import ROUNDING
from fleet.continual.personal import held_back
from fleet.continual.replay import Replay
from fleet.errors import InputError
from fleet.federate.releases import Release, load_release
from server.store import read_json
from simulations.continual.keeping import ContinualFolder, memory_arrays, memory_of
from simulations.continual.run import ScenarioRun, open_run, resumed, simulate
from simulations.continual.setting import setting_of
from simulations.engines import Engine
from simulations.progress import Silent
from tests.simulations.continual.tiny_run import Killed, Notes, tiny_run, train_tiny_base

STEADY = """
name = "steady"
about = "Three people, nothing happens."
periods = {periods}
devices = 3
windows_per_period = {windows}
test_windows_per_period = 4
{more}
"""
ALWAYS = {"rebase_above": 0.0, "rebase_rounds": 2, "rebase_apart": 2}

MakeRun = Callable[..., ScenarioRun]
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def base_bytes(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> bytes:
    text = STEADY.format(more="", periods=4, windows=12)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return train_tiny_base(path, text, tiny_data, epochs=6).read_bytes()


@pytest.fixture
def make_run(tmp_path: Path, tiny_data: Path, base_bytes: bytes) -> MakeRun:
    def make(
        name: str = "run",
        *,
        rate: float = 0.05,
        strategy: str = "core",
        more: str = "",
        periods: int = 4,
        windows: int = 12,
        **named: Any,
    ) -> ScenarioRun:
        text = STEADY.format(more=more, periods=periods, windows=windows)
        values = {"learning_rate": rate}
        folder = tmp_path / name
        return tiny_run(folder, text, tiny_data, base_bytes, (strategy,), values, **named)

    return make


def ran(run: ScenarioRun, strategy: str = "core") -> Records:
    simulate(open_run(run), Silent())
    return records_of(run, strategy)


def records_of(run: ScenarioRun, strategy: str = "core") -> Records:
    paths = sorted((run.folder / strategy / "periods").glob("*.json"))
    return [read_json(path) for path in paths]


def release_at(run: ScenarioRun, base: int, number: int) -> Release:
    folder = run.folder / "core" / f"base-{base:02d}"
    return load_release(folder / "releases" / f"{number:06d}.safetensors")


def same(one: Records, two: Records) -> bool:
    """All but the time that they took."""
    return [r | {"cpu_seconds": 0} for r in one] == [r | {"cpu_seconds": 0} for r in two]


def test_a_release_that_is_worse_than_the_margin_is_kept_but_not_served(make_run: MakeRun) -> None:
    """A rate this high spoils the first releases; later ones start from the base again."""
    run = make_run(rate=3.0, options={"gate": 0.0})
    records = ran(run)
    refused = [r for r in records if not r["candidate"]["promoted"]]
    assert refused
    served = release_at(run, 0, 0)
    numbers = []
    for record in records:
        trial = record["candidate"]
        candidate = release_at(run, 0, trial["release"][0])
        assert candidate.digest == trial["release"][1]
        assert candidate.parent == served.digest, "a round starts from what is served"
        worse = trial["macro_f1"] < trial["macro_f1_before"]
        assert trial["promoted"] is not worse
        if not worse:
            served = candidate
        assert record["release"] == [0, served.number, served.digest]
        assert {tuple(at) for at in record["serving"].values()} == {(0, served.number)}
        numbers.append(candidate.number)
        followers = trial["devices"] if worse else record["online"]
        down = record["traffic"]["bytes_down"]
        assert down == 4 * candidate.state.layout.size * followers
    assert numbers == [1, 2, 3, 4], "numbers ascend, also after one that is not served"
    assert "below" in refused[0]["candidate"]["reason"]


def test_a_gate_that_lets_all_pass_only_costs_windows_and_counts(make_run: MakeRun) -> None:
    gated, plain = ran(make_run("one", options={"gate": 1.0})), ran(make_run("two"))
    assert all(record["candidate"]["promoted"] for record in gated)
    assert all("candidate" not in record for record in plain)
    assert [r["release"][1] for r in gated] == [r["release"][1] for r in plain]
    for with_it, without in zip(gated, plain, strict=True):
        trial = with_it["candidate"]
        more = {
            k: with_it["traffic"][k] - without["traffic"][k] for k in ("bytes_up", "bytes_down")
        }
        classes = 7
        assert more["bytes_up"] == 2 * 8 * classes**2 * trial["devices"]
        assert more["bytes_down"] == 0, "who has tried a candidate holds what is served then"
    set_apart = sum(p["labels"] - g["labels"] for p, g in zip(plain, gated, strict=True))
    assert set_apart > gated[-1]["candidate"]["windows"] > 0, "some of them came again"


def test_what_is_set_aside_is_never_trained_on(make_run: MakeRun) -> None:
    run = make_run(
        strategy="core+replay",
        more="label_fraction = 0.6\nlabel_delay = 1",
        options={"gate": 0.5, "pseudo": 1.0},
    )
    records = ran(run, "core+replay")
    memories = ContinualFolder(run.folder / "core+replay").memories(records[-1])
    for memory in memories.values():
        assert memory.probe is not None
        assert held_back(memory.probe.source).all()
        assert len(memory.replay.ids), "the others are"
        assert not held_back(source_of(memory.replay.ids)).any()


def test_a_window_that_may_be_set_aside_gets_no_pseudo_label_before(make_run: MakeRun) -> None:
    more, found = "label_fraction = 0.1\nlabel_delay = 2", {}
    for name, options in (("gated", {"gate": 0.5}), ("plain", {})):
        run = make_run(name, more=more, options=options)
        setting, (one,) = setting_of(run.config, run.scenario), run.chosen()
        devices = setting.continual(one, setting.base(one, None)).devices
        devices.device(0, Workbench(setting.base(one, None)))
        found[name] = len(devices.look(0, 0).unlabelled)
    every = held_back(devices.timeline.rows(0, 0))
    assert (found["plain"], found["gated"]) == (12, 12 - every.sum())
    assert every.any()


def test_a_probe_set_is_filled_once_and_windows_stay_on_their_side() -> None:
    def known(first: int, count: int) -> Labelled:
        ids = np.arange(first, first + count, dtype=np.int64)
        return Labelled(np.zeros((count, 1, 2), np.float32), ids % 3, ids)

    memory = DeviceMemory(Replay.empty(0, "int8", seed=0, device="a"))
    trained: set[int] = set()
    for first in (0, 50, 100, 150, 200, 100):
        memory, rest = set_aside(memory, known(first, 60))
        trained |= set(rest.ids.tolist())
        assert memory.probe is not None
        probe = memory.probe.ids
        assert not trained & set(probe.tolist())
        assert len(set(probe.tolist())) == len(probe) <= PROBE_WINDOWS
        assert set(rest.ids.tolist()) | set(probe.tolist()) >= set(known(first, 60).ids.tolist())
    assert memory.probe is not None
    first_held = np.arange(260)[held_back(np.arange(260, dtype=np.int64))][:PROBE_WINDOWS]
    np.testing.assert_array_equal(memory.probe.ids, first_held)
    np.testing.assert_array_equal(memory.probe.y, first_held % 3)
    assert not for_probe(memory, np.arange(300, 400, dtype=np.int64)).any(), "full"


def test_a_window_that_comes_again_is_set_aside_once_and_never_trained_on() -> None:
    def known(sources: list[int], period: int) -> Labelled:
        rows = np.array(sources, np.int64)
        return Labelled(np.zeros((len(rows), 1, 2), np.float32), rows, arrival_ids(rows, period))

    aside = np.flatnonzero(held_back(np.arange(300, dtype=np.int64)))[: PROBE_WINDOWS + 1].tolist()
    other = np.flatnonzero(~held_back(np.arange(9, dtype=np.int64)))[:2].tolist()
    memory = DeviceMemory(Replay.empty(0, "int8", seed=0, device="a"))
    memory, rest = set_aside(memory, known([aside[0], other[0], aside[0], other[0]], 0))
    assert rest.source.tolist() == [other[0], other[0]]
    assert len(set(rest.ids.tolist())) == 2, "two arrivals of one window"
    memory, rest = set_aside(memory, known([other[1], *aside], 1))
    assert rest.source.tolist() == [other[1], aside[-1]], "the probe set is full before the last"
    memory, rest = set_aside(memory, known([*aside, *other], 2))
    assert rest.source.tolist() == [aside[-1], *other]
    assert memory.probe is not None
    assert memory.probe.source.tolist() == aside[:-1]


def test_a_person_whose_windows_are_used_up_shows_none_of_its_probe_set_again(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows themselves are compared, over so many periods that each comes several times."""
    trained = defaultdict[str, set[bytes]](set)
    real = ContinualDevice.learner

    def spy(self: ContinualDevice, fresh: Labelled, *rest: Any) -> Any:
        trained[self.name] |= {window.tobytes() for window in fresh.x}
        return real(self, fresh, *rest)

    monkeypatch.setattr(ContinualDevice, "learner", spy)
    run = make_run(strategy="core+replay", periods=4, windows=30, options={"gate": 1.0})
    records = ran(run, "core+replay")
    for number, memory in ContinualFolder(run.folder / "core+replay").memories(records[-1]).items():
        assert memory.probe is not None
        assert len(set(source_of(memory.replay.ids))) < len(memory.replay), "windows came again"
        judged = {window.tobytes() for window in memory.probe.x}
        assert judged
        assert not judged & trained[f"device-{number:05d}"]


def test_a_private_core_is_never_trained_on_what_it_is_judged_on_in_any_period(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, trained = (defaultdict[str, set[bytes]](set) for _ in range(2))
    real, fresh = continual_module.private_work, defaultdict[str, int](int)

    def spy(*args: Any, device: str, seed: int) -> Any:
        work = real(*args, device=device, seed=seed)
        fresh[device] += len(args[4])
        # Fresh windows as they are; replayed ones have lost digits.
        new = args[4].ids
        for found, part in ((judged, work.check), (trained, work.training)):
            found[device] |= {window.tobytes() for window in part.x[np.isin(part.ids, new)]}
        return work

    monkeypatch.setattr(continual_module, "private_work", spy)
    ran(make_run(strategy="core+replay+personal", periods=3, windows=30), "core+replay+personal")
    for device, number in fresh.items():
        assert judged[device]
        assert not judged[device] & trained[device]
        assert len(judged[device] | trained[device]) < number, "windows came again"


def test_a_memory_with_a_probe_set_survives_its_file_form() -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    probe = Labelled(x, np.array([0, 1, 1]), np.array([5, 7, 9]))
    memory = DeviceMemory(Replay.empty(0, "int8", seed=0, device="a"), probe=probe)
    back = memory_of(*memory_arrays(memory)).probe
    assert back is not None
    for one, two in ((probe.x, back.x), (probe.y, back.y), (probe.ids, back.ids)):
        np.testing.assert_array_equal(one, two)


def test_new_frames_come_on_the_kernels_that_the_release_had_made(make_run: MakeRun) -> None:
    run = make_run(options=ALWAYS)
    records = ran(run)
    assert [r["outside"].get("rebased", False) for r in records] == [False, True, False, True]
    assert [tuple(r["release"][:2]) for r in records] == [(0, 1), (1, 3), (1, 4), (2, 6)]
    old, new = (load_base(run.folder / "core" / f"base-0{n}" / "base.safetensors") for n in (0, 1))
    last, first = release_at(run, 0, 2), release_at(run, 1, 3)
    assert first.parent == last.digest
    assert not first.state.flat().any()
    merged = merge(parameters_of(folded_network(old)), old.frames, last.state)
    own = parameters_of(folded_network(new))
    for name, values in merged.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(own[name], values, rtol=0, atol=ROUNDING * scale)
    assert old.frame_digest != new.frame_digest


def test_the_bytes_of_new_frames_and_of_the_release_behind_them_are_counted(
    make_run: MakeRun,
) -> None:
    run, plain = make_run("one", options=ALWAYS), make_run("two")
    renewed, without = ran(run), ran(plain)
    base = load_base(run.folder / "core" / "base-01" / "base.safetensors")
    frames = sum(frame.array.nbytes for frame in base.frames.values())
    release = 4 * release_at(run, 0, 2).state.layout.size
    down = [r["traffic"]["bytes_down"] for r in renewed]
    wanted = [r["traffic"]["bytes_down"] for r in without]
    assert down[1] == wanted[1] + 3 * (frames + release)
    assert down[0] == wanted[0]
    up = [
        r["traffic"]["bytes_up"] - w["traffic"]["bytes_up"]
        for r, w in zip(renewed, without, strict=True)
    ]
    assert up == [3 * 16 * len(base.frames)] * 4


def test_a_bound_that_is_never_reached_changes_nothing_but_the_record(make_run: MakeRun) -> None:
    watched, plain = ran(make_run("one", options={"rebase_above": 1.0})), ran(make_run("two"))
    assert [r["release"] for r in watched] == [r["release"] for r in plain]
    for record in watched:
        assert 0 < record["outside"]["share"] < 1
        assert all(0 <= share <= 1 for share in record["outside"]["layers"].values())
    assert all("outside" not in record for record in plain)


def test_both_engines_train_on_the_new_base(make_run: MakeRun) -> None:
    runs = [make_run(e.value, options=ALWAYS, engine=e) for e in (Engine.loop, Engine.cohort)]
    for run in runs:
        ran(run)
    one, two = (release_at(run, 1, 4).state.flat() for run in runs)
    assert np.linalg.norm(one) > 0
    assert np.linalg.norm(one - two) < 1e-2 * np.linalg.norm(one)


def test_a_killed_run_goes_on_with_its_gate_and_its_frames(make_run: MakeRun) -> None:
    options, strategy = ALWAYS | {"gate": 0.0}, "core+replay+personal"
    named = {"options": options, "strategy": strategy, "more": "online = 0.6", "rate": 0.5}
    unbroken = ran(make_run("one", **named), strategy)
    run = make_run("two", **named)
    with pytest.raises(Killed):
        simulate(open_run(run), Notes(3))
    simulate(resumed(run.folder, 0), Silent())
    assert same(records_of(run, strategy), unbroken)


@pytest.mark.parametrize(
    "options", [{"gate": -0.1}, {"gate": 2}, {"rebase_above": 1.5}, {"rebase_rounds": 0}]
)
def test_options_of_the_server_are_checked(make_run: MakeRun, options: dict[str, Any]) -> None:
    run = make_run(options=options)
    with pytest.raises(InputError) as caught:
        open_run(run)
    assert caught.value.code == "continual-options"

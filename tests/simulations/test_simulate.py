from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import load_base
from fleet.config import RunConfig
from fleet.errors import InputError, RoundError
from fleet.federate.releases import load_release
from fleet.federate.served import load_merged
from fleet.files import write_json
from fleet.har.population import Population
from server.store import RunFolder, read_json
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate
from tests.simulations.tiny_fleet import RATE, MakeConfig

METHODS = ("core", "head", "local")
SCORES = {"macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile"}
SUMMARY = SCORES | {"trained_parameters", "bytes_up", "bytes_down", "wire_bytes_up"}
SUMMARY |= {"wire_bytes_down", "seconds"}


class Interrupting(Silent):
    """A progress at whose ``after``-th step somebody presses ctrl-c."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def start(config: RunConfig, *methods: str) -> Run:
    return open_run(Run(config, methods or METHODS, {}), resume=False)


@pytest.fixture(scope="module")
def whole(
    make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, simulate(start(make_config(out=str(out))), Silent())


def outcome(report: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on the clock or the folder."""
    methods = {
        name: {key: value for key, value in summary.items() if key != "seconds"}
        for name, summary in report["methods"].items()
    }
    kept = ("before", "release", "base", "devices", "rounds", "data", "classes")
    return {"methods": methods, **{key: report[key] for key in kept}}


def test_the_report_has_the_promised_fields(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    assert set(report["before"]) == SCORES
    assert list(report["methods"]) == list(METHODS)
    for summary in report["methods"].values():
        assert set(summary) >= SUMMARY
        assert all(0 <= summary[score] <= 1 for score in SCORES)
        assert summary["seconds"] >= 0
    assert (report["devices"], report["rounds"]) == (3, 2)
    assert report["base"]["digest"] == load_base(out / "base.safetensors").digest
    assert report == read_json(out / "report.json")


def test_the_release_of_the_report_is_the_last_one_of_core(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    out, report = whole
    release = load_release(out / "core" / "releases" / "000002.safetensors")
    assert report["release"] == {"number": 2, "digest": release.digest}
    assert report["methods"]["core"]["trained_parameters"] == release.state.layout.size


def test_bytes_are_those_of_one_device_and_round(whole: tuple[Path, dict[str, Any]]) -> None:
    _, report = whole
    core, head = report["methods"]["core"], report["methods"]["head"]
    for summary in (core, head):
        assert summary["bytes_up"] == summary["bytes_down"] == 4 * summary["trained_parameters"]
        for way in ("up", "down"):
            assert summary[f"bytes_{way}"] < summary[f"wire_bytes_{way}"]
            assert summary[f"wire_bytes_{way}"] < summary[f"bytes_{way}"] + 2500


def test_local_only_sends_nothing_and_makes_no_release(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    local = report["methods"]["local"]
    ways = [local[f"{kind}_{way}"] for kind in ("bytes", "wire_bytes") for way in ("up", "down")]
    assert ways == [0, 0, 0, 0]
    assert local["release"] is None
    assert not (out / "local" / "releases").exists()
    assert local["trained_parameters"] == report["methods"]["core"]["trained_parameters"]


def test_all_methods_start_from_the_same_scores(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    for name in METHODS:
        first = RunFolder(out / name).evaluation(0)
        assert first is not None
        assert {key: first[key] for key in SCORES} == report["before"]


def test_the_merged_model_loads_without_a_base_and_is_what_the_devices_judged(
    whole: tuple[Path, dict[str, Any]], tiny_people: Population
) -> None:
    import numpy as np
    import torch

    from fleet.adapt.train import predict
    from fleet.har.normalise import Normalisation
    from fleet.har.population import share_windows
    from fleet.measure.f1 import confusion

    out, _ = whole
    network, about = load_merged(out / "core" / "merged.safetensors")
    normalisation = Normalisation(np.array(about.mean, "f4"), np.array(about.std, "f4"))
    kept = read_json(out / "core" / "evaluations" / "000002.json")
    for person in tiny_people.fleet:
        share, _, future = share_windows(
            tiny_people, person, normalisation, train_fraction=0.6, seed=0
        )
        counts = confusion(future.y, predict(network, torch.from_numpy(future.x)), 7)
        assert counts.tolist() == kept["devices"][share.name]["confusion"]


def test_the_same_seed_ends_in_the_same_report_and_another_seed_does_not(
    whole: tuple[Path, dict[str, Any]], make_config: MakeConfig, tmp_path: Path
) -> None:
    _, report = whole
    again = simulate(start(make_config(out=str(tmp_path / "again"))), Silent())
    assert outcome(again) == outcome(report)
    other = simulate(start(make_config(out=str(tmp_path / "other"), seed=1), "core"), Silent())
    assert other["release"]["digest"] != report["release"]["digest"]


# Two rounds of three devices: core steps 1-6, head 7-12, local 13-18; one step of base is before.
@pytest.mark.parametrize(
    "after",
    [5, 14, pytest.param(2, marks=pytest.mark.faults), pytest.param(8, marks=pytest.mark.faults)],
)
def test_an_interrupted_run_that_is_resumed_ends_like_an_unbroken_one(
    whole: tuple[Path, dict[str, Any]], make_config: MakeConfig, tmp_path: Path, after: int
) -> None:
    out, report = whole
    with pytest.raises(KeyboardInterrupt):
        simulate(start(make_config(out=str(tmp_path))), Interrupting(after))
    assert not (tmp_path / "report.json").exists()
    wanted = Run(RunConfig.parse({"out": str(tmp_path)}), ("core",), {})
    resumed = simulate(open_run(wanted, resume=True), Silent())
    assert outcome(resumed) == outcome(report)
    for name in ("core/merged.safetensors", "core/releases/000001.safetensors"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_rehearsal_chooses_one_of_the_methods_rates_and_is_kept(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from fleet.peft.core import core

    config = make_config(out=str(tmp_path), learning_rate=0.0, base_epochs=2, rounds=1)
    report = simulate(start(config, "core"), Silent())
    kept = read_json(tmp_path / "rates.json")
    assert kept["chosen"]["core"] in core.rates
    assert report["methods"]["core"]["learning_rate"] == kept["chosen"]["core"]
    cells = {rate: score for _, rate, score in kept["rehearsed"]}
    assert core.default_rate in cells
    assert set(cells) <= set(core.rates)
    usable = {rate: score for rate, score in cells.items() if score is not None}
    best = max(usable.values())
    assert usable[kept["chosen"]["core"]] == best


def test_a_rate_given_by_hand_is_used_and_not_rehearsed(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(out=str(tmp_path), learning_rate=0.0, rounds=1)
    run = open_run(Run(config, ("head",), {"head": RATE}), resume=False)
    simulate(run, Silent())
    assert read_json(tmp_path / "rates.json") == {"chosen": {"head": RATE}, "rehearsed": []}


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as refused:
        call()
    return refused.value.code


def test_a_folder_with_a_run_is_not_overwritten(make_config: MakeConfig, tmp_path: Path) -> None:
    run = Run(make_config(out=str(tmp_path)), ("core",), {})
    write_json(tmp_path / "run.json", run.record())
    before = (tmp_path / "run.json").read_bytes()
    assert code_of(lambda: open_run(run, resume=False)) == "out-in-use"
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_without_a_run_cannot_be_resumed(make_config: MakeConfig, tmp_path: Path) -> None:
    run = Run(make_config(out=str(tmp_path / "none")), ("core",), {})
    assert code_of(lambda: open_run(run, resume=True)) == "nothing-to-resume"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("run", [(("dora",), {}), ((), {}), (("core",), {"dora": 0.1})])
def test_an_unknown_method_is_refused_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path, run: tuple[tuple[str, ...], dict[str, float]]
) -> None:
    wanted = Run(make_config(out=str(tmp_path / "x")), *run)
    assert code_of(lambda: open_run(wanted, resume=False)) == "unknown-method"
    assert not (tmp_path / "x").exists()


def test_a_resumed_run_keeps_its_configuration(make_config: MakeConfig, tmp_path: Path) -> None:
    first = Run(make_config(out=str(tmp_path), rounds=7), ("head",), {"head": 0.2})
    write_json(tmp_path / "run.json", first.record())
    asked = Run(RunConfig.parse({"out": str(tmp_path)}), ("core",), {})
    resumed = open_run(asked, resume=True)
    assert (resumed.config, resumed.methods, resumed.rates) == (
        first.config,
        ("head",),
        {"head": 0.2},
    )


def test_a_fleet_whose_rates_all_diverge_says_so(make_config: MakeConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    from fleet.har.population import population_of
    from fleet.peft.core import core
    from server.rehearsal import rehearsal_base

    config = make_config(base_epochs=1)
    rehearsal = rehearsal_base(config, population_of(config))
    assert rehearsal is not None
    wild = replace(core, rates=(1e20,), default_rate=1e20)
    with pytest.raises(RoundError) as refused:
        rehearsal.choose(config, wild, on_cell=lambda *cell: None)
    assert refused.value.code == "no-rate"

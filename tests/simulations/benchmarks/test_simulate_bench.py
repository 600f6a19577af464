from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clients.agent.simulated import learner_of
from fleet.adapt.base import load_base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.config import RunConfig
from fleet.errors import InputError, RoundError
from fleet.federate.records import Plan
from fleet.files import write_json
from fleet.har.sources import BUILT_IN, ENVIRONMENT
from fleet.peft.registry import find
from server.control.cli import root
from server.store import RunFolder
from simulations.benchmarks.simulate import cohort, loop, workload
from simulations.benchmarks.simulate.measure import measure
from simulations.benchmarks.simulate.outcome import (
    Outcome,
    Watch,
    of_run_folder,
    read_outcome,
)
from simulations.benchmarks.simulate.report import record_of
from simulations.benchmarks.simulate.sides import SIDES, Side, Surroundings, find_sides
from simulations.benchmarks.simulate.trainee import MOMENTUM
from simulations.benchmarks.simulate.work import Work, is_evaluated, read_work
from simulations.benchmarks.simulate.workload import Recipe, cohorts_of, prepare, read_recipe
from simulations.cli.bench import app
from simulations.placed import placed
from simulations.processes import Command, Finished
from tests.simulations.tiny_fleet import MakeConfig

ROUNDS = 2
needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="recipes are TOML")


@pytest.fixture(scope="module")
def work(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Four devices of eight windows, two of them in a round, two rounds."""
    config = make_config(
        devices=4, windows_per_device=8, cohort=2, rounds=ROUNDS, batch=4, evaluate_every=2
    )
    return prepare(Recipe(config, full_rate=0.01), tmp_path_factory.mktemp("work"))


def plan_of(work: Work, method: str, number: int, state: CoreState) -> Plan:
    base = load_base(Path(work.config.base))
    return Plan(
        round=number,
        base=base.digest,
        frame=base.frame_digest,
        layout=state.layout.digest,
        release=number - 1,
        state=state.digest,
        method=method,
        rank=base.record.rank,
        epochs=work.config.epochs,
        batch=work.config.batch,
        optimiser="sgd",
        learning_rate=work.rate(method),
        momentum=MOMENTUM,
        seed=work.config.seed,
        weight_cap=work.config.weight_cap,
        deadline_s=1.0,
    )


@pytest.fixture(scope="module")
def cohort_run(work: Work) -> Path:
    out = work.folder / "toy-cohort"
    assert root.run(list(cohort.words(work, out))) == 0
    return out / "core"


@pytest.fixture(scope="module")
def loop_run(work: Work) -> tuple[np.ndarray, Outcome]:
    watch = Watch()
    model = loop.run(work, "core", 1, watch)
    return model, Outcome(tuple(watch.rounds), watch.scores)


def test_a_prepared_workload_is_read_as_it_was_made(work: Work) -> None:
    assert read_work(work.path) == work
    assert work.sizes["devices"] == 4
    assert 0 < work.sizes["training_windows"] <= 4 * 8


def test_a_folder_with_the_name_of_a_data_set_is_not_taken_for_it(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Path(make_config().data)
    monkeypatch.setenv(ENVIRONMENT, str(tiny.parent))
    monkeypatch.chdir(tmp_path)
    Path(tiny.stem).mkdir()
    config = make_config(data=tiny.stem)
    assert workload._data(config, tmp_path) == placed(config).data == str(tiny.resolve())


@pytest.mark.parametrize("method", ["core", "full"])
def test_the_loop_trains_a_device_as_its_learner_does(work: Work, method: str) -> None:
    base = load_base(Path(work.config.base))
    zero = CoreState.zero(find(method).layout(folded_network(base), base.frames))
    delta, _ = learner_of(work.config.for_flower(), 1).train(plan_of(work, method, 1, zero), zero)
    worker = loop.Worker(work, method)
    before = worker.trainee.vector().numpy()
    after, weight = worker.train(1, [1], before)
    moved = after / weight - before
    if method == "full":  # its vector is in the order of the network, the state's sorted by name
        names = [name for name, _ in folded_network(base).named_parameters()]
        wanted = np.concatenate([delta.arrays[name].ravel() for name in names])
    else:
        wanted = delta.flat()
    assert float(np.abs(wanted).max()) > 1e-4
    np.testing.assert_allclose(moved, wanted, atol=1e-5)


def test_the_loop_ends_in_the_release_of_our_engine(
    cohort_run: Path, loop_run: tuple[np.ndarray, Outcome], work: Work
) -> None:
    model, said = loop_run
    release = RunFolder(cohort_run).last_release(load_base(Path(work.config.base)))
    assert release is not None
    np.testing.assert_allclose(model, release.state.flat(), atol=1e-4)
    ours = of_run_folder(cohort_run)
    assert ours.scores.keys() == said.scores.keys() == {0, ROUNDS}
    assert ours.scores[0] == pytest.approx(said.scores[0], abs=1e-5)
    assert len(ours.rounds) == len(said.rounds) == ROUNDS
    assert all(seconds > 0 for seconds in (*ours.rounds, *said.rounds))


def test_cohorts_are_those_that_the_coordinator_draws(cohort_run: Path, work: Work) -> None:
    selected = [record["selected"] for record in RunFolder(cohort_run).rounds()]
    assert selected == [[f"device-{d:05d}" for d in drawn] for drawn in cohorts_of(work.config)]


def test_the_loop_trains_all_weights_and_learns_what_it_writes(work: Work, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    loop.main("full", work.path, tmp_path, processes=1)
    torch.set_num_threads(before)
    said = read_outcome(tmp_path)
    assert (len(said.rounds), said.scores.keys()) == (ROUNDS, {0, ROUNDS})
    assert said.macro_f1 == said.scores[ROUNDS]


@pytest.mark.skipif(sys.platform != "linux", reason="the pool is forked")
def test_two_processes_end_where_one_does(
    work: Work, loop_run: tuple[np.ndarray, Outcome], tmp_path: Path
) -> None:
    words = shlex.split(f"core {work.path} {tmp_path} 2")
    subprocess.run(
        [sys.executable, "-m", "simulations.benchmarks.simulate.loop", *words],
        check=True,
        timeout=120,
    )
    said = read_outcome(tmp_path)
    assert said.macro_f1 == pytest.approx(loop_run[1].macro_f1, abs=0.05)


def test_rounds_are_timed_from_the_evaluation_before_them(tmp_path: Path) -> None:
    ends = {"evaluations/000000": 1.0, "rounds/000001": 3.0, "rounds/000002": 4.0}
    ends |= {"evaluations/000002": 9.0, "rounds/000003": 9.5, "evaluations/000003": 12.0}
    for name, end in ends.items():
        path = tmp_path / f"{name}.json"
        write_json(path, {"macro_f1": end / 100})
        os.utime(path, (end, end))
    found = of_run_folder(tmp_path)
    assert found.rounds == (2.0, 1.0, 0.5)
    assert found.seconds_per_round == 0.75
    assert found.macro_f1 == 0.12


def test_a_watch_keeps_evaluations_out_of_rounds(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 3.0, 7.0])
    watch = Watch(lambda: next(times))
    watch.judged(0, np.eye(2, dtype=np.int64))
    watch.trained()
    watch.judged(1, np.eye(2, dtype=np.int64)[::-1])
    watch.write(tmp_path)
    assert read_outcome(tmp_path) == Outcome((2.0,), {0: 1.0, 1: 0.0})
    with pytest.raises(RoundError, match="wrote no"):
        read_outcome(tmp_path / "elsewhere")


def commands_of(work: Work, around: Surroundings) -> dict[str, Command]:
    commands = {}
    for name, side in SIDES.items():
        with side.command(work, Path("/out"), around) as command:
            commands[name] = command
    return commands


def test_every_side_is_a_command_of_its_own(work: Work) -> None:
    commands = commands_of(work, Surroundings("/pfl/bin/python", cores=2))
    assert commands["loop-core"].words[-4:] == ("core", str(work.path), "/out", "2")
    assert commands["pfl"].words[0] == "/pfl/bin/python"
    assert "--nproc-per-node=2" in commands["pfl"].words
    assert commands["cohort"].words[1:4] == ("simulate", "--methods", "core")
    for name in ("loop-full", "loop-core"):
        assert commands[name].words[0] == sys.executable
        assert commands[name].environment == {}


def test_flower_runs_apart_from_the_users_own_and_is_tuned_on_one_side_only(work: Work) -> None:
    commands = commands_of(work, Surroundings(cores=2))
    tuned, default = commands["flwr-ray"], commands["flwr-ray-default"]
    federation = [
        each.words[each.words.index("--federation-config") + 1] for each in (tuned, default)
    ]
    assert federation == [
        "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2",
        "num-supernodes=4",
    ]
    assert "OMP_NUM_THREADS" not in default.environment
    keys = ("FLWR_HOME", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")
    for key in keys:
        assert tuned.environment[key] != default.environment[key]
    assert not Path(tuned.environment["FLWR_HOME"]).exists()


def test_flower_is_given_the_whole_run_configuration(work: Work) -> None:
    import tomllib

    with SIDES["flwr-ray"].command(work, Path("/out"), Surroundings()) as command:
        home = Path(command.environment["FLWR_HOME"])
        given = tomllib.loads((home / "run.toml").read_text())
        connection = tomllib.loads((home / "config.toml").read_text())
    assert given == {**work.config.for_flower(), "out": "/out"}
    assert connection["superlink"]["own"]["address"] == ":local-in-memory:"


def test_a_side_without_its_package_says_so() -> None:
    assert "no --pfl-python" in SIDES["pfl"].absent(Surroundings())
    assert "no interpreter" in SIDES["pfl"].absent(Surroundings("/nowhere/python"))
    # This interpreter has Corefleet and PyTorch, but no pfl.
    assert "cannot use it" in SIDES["pfl"].absent(Surroundings(sys.executable))


def test_sides_are_chosen_by_name_and_keep_their_order() -> None:
    assert list(find_sides("pfl, cohort")) == ["cohort", "pfl"]
    assert list(find_sides("")) == list(SIDES)
    with pytest.raises(InputError, match="no side ray"):
        find_sides("cohort,ray")


def toy_side(words: tuple[str, ...], absent: str = "") -> Side:
    from contextlib import nullcontext

    def outcome(folder: Path) -> Outcome:
        return Outcome((2.0, 1.0), {0: 0.25, 2: 0.5})

    return Side("toy", lambda *_: nullcontext(Command(words, {})), outcome, lambda around: absent)


def test_a_side_that_fails_or_is_absent_is_null_and_the_others_go_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(devices=4, windows_per_device=8, cohort=2, rounds=ROUNDS)
    work = Work(config, 0.01, cohorts_of(config), tmp_path, {"devices": 4})
    here = (sys.executable, "-c")
    sides = {
        "cohort": toy_side((*here, "pass")),
        "loop-full": toy_side((*here, "raise SystemExit('broken')")),
        "pfl": toy_side((*here, "pass"), absent="not installed"),
    }
    told: list[tuple[str, int]] = []
    measured = measure(sides, work, Surroundings(), 2, lambda name, n, _: told.append((name, n)))
    assert told == [("pfl", 0), ("cohort", 1), ("loop-full", 1), ("cohort", 2)]
    record = json.loads(json.dumps(record_of(work, measured, 2), allow_nan=False))
    assert record["sides"]["pfl"] is None
    assert record["sides"]["loop-full"] is None
    assert "broken" in record["absent"]["loop-full"]
    assert record["absent"]["pfl"] == "not installed"
    ours = record["sides"]["cohort"]
    assert (ours["runs"], ours["seconds_per_round"], ours["macro_f1"]) == (2, 1.0, 0.5)
    assert ours["seconds_lowest"] <= ours["seconds"] <= ours["seconds_highest"]
    assert ours["ratio"]["seconds"] == 1.0
    assert isinstance(ours["peak_bytes"], int)


def test_medians_and_ratios_are_those_of_the_runs(work: Work) -> None:
    def runs(*seconds: float) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                seen=Finished(0, each, int(each * 1e6)), said=Outcome((9.0, each), {0: 0.0, 2: 1.0})
            )
            for each in seconds
        ]

    measured = SimpleNamespace(runs={"cohort": runs(1, 2, 6), "pfl": runs(3, 4, 5)}, absent={})
    sides = record_of(work, measured, 3)["sides"]  # type: ignore[arg-type]
    assert sides["pfl"]["seconds"] == 4.0
    assert (sides["cohort"]["seconds_lowest"], sides["cohort"]["seconds_highest"]) == (1, 6)
    assert sides["pfl"]["ratio"] == {"seconds": 2, "seconds_per_round": 2, "peak_bytes": 2}


@needs_toml
def test_the_reference_recipe_is_the_workload_that_the_targets_name() -> None:
    recipe = read_recipe()
    config = recipe.config
    assert (config.devices, config.windows_per_device, config.cohort) == (100, 100, 50)
    assert (config.batch, config.epochs, config.rounds, config.evaluate_every) == (16, 1, 10, 5)
    assert config.data in BUILT_IN
    assert [n for n in range(1, 11) if is_evaluated(config, n)] == [5, 10]


@needs_toml
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 10}, "a cohort of 50"),
        ({"learning_rate": 0.0}, "learning_rate must be given"),
        ({"method": "head"}, "method is core"),
    ],
)
def test_a_recipe_that_sides_could_not_share_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(changes=changes)


@needs_toml
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[run]\n")
    with pytest.raises(InputError, match="no recipe of this bench"):
        read_recipe(tmp_path / "r.toml")


@needs_toml
def test_a_dry_run_prints_every_command_and_runs_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["simulate", "--dry-run", "--devices", "60", "--out", str(out), "--format", "json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)["data"]
    assert list(data["commands"]) == list(SIDES)
    assert data["work"]["devices"] == 60
    assert "num-supernodes=60" in data["commands"]["flwr-ray"]["command"]
    assert "docs/bench-simulate.md" in data["commands"]["pfl"]["absent"]
    assert not out.exists()


@needs_toml
def test_the_command_runs_a_side_and_prints_the_documented_record(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        devices=3, windows_per_device=6, cohort=2, rounds=ROUNDS, evaluate_every=2, epochs=1
    )
    recipe = tmp_path / "toy.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.for_flower().items()]
    recipe.write_text("\n".join(["[run]", *lines, "[full]", "learning-rate = 0.01"]))
    words = f"simulate --runs 1 --sides loop-full,pfl --data {config.data} --recipe {recipe}"
    done = CliRunner().invoke(app, [*shlex.split(words), "--format", "json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)["data"]
    assert data["sides"]["pfl"] is None
    assert {"seconds", "seconds_per_round", "peak_bytes"} <= data["sides"]["loop-full"].keys()
    assert data["sides"]["loop-full"]["seconds"] > 0
    assert {"command", "machine", "versions", "work"} <= data.keys()


def test_a_setting_without_a_flag_is_refused(work: Work) -> None:
    config = work.config.model_copy(update={"weight_cap": 7})
    with pytest.raises(InputError, match="no flag --weight-cap"):
        cohort.words(replace(work, config=config), Path("out"))


def test_every_other_setting_has_its_flag(work: Work) -> None:
    command = root.root.get_command(click.Context(root.root), "simulate")
    assert command is not None
    flags = {option.name for option in command.params}
    known = set(RunConfig.model_fields) - cohort.SAID_OTHERWISE
    assert known - flags == cohort.NO_FLAG

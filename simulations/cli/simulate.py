"""``fleet simulate``: the main job on the command line."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from fleet.federate.rule import RULES
from server.control.cli.render import Format, FormatOption, emit
from simulations.cli.units import bytes_of
from simulations.engines import Engine
from simulations.traces.table import field_cells, field_headings

if TYPE_CHECKING:
    from simulations.simulate import Run

__all__ = ["app", "rates_of"]

app = typer.Typer(add_completion=False)

HELP = (
    "Let a fleet of people learn from their own sensor data.\n\n"
    "Half of the people train a base model. The others are the fleet: each device adapts the base "
    "on its own windows and sends only what the method trains; the server averages, and the merged "
    "model is judged on each device's later windows."
)
EPILOG = """Examples:

fleet simulate --data synthetic --rounds 3

fleet simulate --data hapt --methods core,full --out runs/hapt

fleet simulate --data my.npz --model t-resnet --rank 2 --shift none

fleet simulate --devices 200 --windows-per-device 40 --variation gain:10+noise:5 --cohort 20

fleet simulate --devices 200 --cohort 20 --trace nightly --target-f1 0.9

fleet simulate --devices 20 --rule trimmed:0.2

fleet simulate --scenario sensor-moves --strategies frozen,core,core+replay

fleet simulate --scenario ninety-days --strategies core --out runs/ninety

fleet simulate --out runs/hapt --resume
"""

# Flags that change no bit of a result, so that a run may go on with others.
WHERE = {"workers", "ray_address"}
# Flags that name what a run is; with --resume they come from the run itself.
SCENARIO = {"scenario", "strategies", "option"}
NOT_CONFIG = {"methods", "rate", "engine", "resume", "form", "out", *WHERE, *SCENARIO}


@app.command(help=HELP, epilog=EPILOG)
def simulate(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="Name or path of a data set; default: HAPT if found, or synthetic.")
    ] = "",
    classes: Annotated[str, typer.Option(help="basic or all.")] = "basic",
    model: Annotated[
        str,
        typer.Option(
            help="Backbone: small-cnn, t-resnet, mobilenetv2-1d, mobilenetv2-2d, calanet."
        ),
    ] = "small-cnn",
    frame: Annotated[
        str, typer.Option(help="Frame of the cores: svd, tt, random, gradient or people.")
    ] = "svd",
    rank: Annotated[int, typer.Option(help="Columns of each core.")] = 4,
    rounds: Annotated[int, typer.Option(help="Federated rounds.")] = 8,
    seed: Annotated[int, typer.Option(help="Root of every random choice.")] = 0,
    shift: Annotated[
        str,
        typer.Option(
            help="How the fleet's sensors differ: none, remount:DEGREES, gain:PERCENT, "
            "rate:PERCENT, noise:PERCENT, placement:DEGREES, or several joined by +."
        ),
    ] = "remount:35",
    devices: Annotated[
        int, typer.Option(help="Virtual devices made of the fleet's people; 0: one of each person.")
    ] = 0,
    windows_per_device: Annotated[
        int, typer.Option(help="Most windows that a device trains or is tested on; 0 for all.")
    ] = 0,
    class_mix: Annotated[
        float,
        typer.Option(
            help="Dirichlet concentration of a device's classes; less is more one-sided, "
            "0: as the person has them."
        ),
    ] = 0.0,
    variation: Annotated[
        str,
        typer.Option(help="How each device's sensor differs from the others'; forms of --shift."),
    ] = "none",
    methods: Annotated[
        str, typer.Option(help="Methods to compare, by comma: core, bias, head, full, local.")
    ] = "core,head,full,local",
    rate: Annotated[
        list[str] | None,
        typer.Option(help="METHOD=RATE; repeatable. Methods without one are rehearsed."),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(
            help="What happens to the fleet over months: a name that fleet scenario list shows, or "
            "a TOML file. Then the scenario says devices, rounds and shifts."
        ),
    ] = "",
    strategies: Annotated[
        str,
        typer.Option(help="With --scenario, by comma: how the fleet goes on learning."),
    ] = "frozen,core,core+replay+personal",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="With --scenario: KEY=VALUE of what devices do beside plain training, for all "
            "strategies; repeatable. Keys are in docs/continual.md."
        ),
    ] = None,
    cohort: Annotated[int, typer.Option(help="Devices per round; 0 for all.")] = 0,
    rule: Annotated[
        str, typer.Option(help=f"How updates are aggregated: {', '.join(RULES)}.")
    ] = "mean",
    evaluate_every: Annotated[
        int, typer.Option(help="Rounds between evaluations; the last one always is.")
    ] = 1,
    evaluate_devices: Annotated[
        int, typer.Option(help="Devices that are evaluated, a fixed sample; 0 for all.")
    ] = 0,
    trace: Annotated[
        str,
        typer.Option(
            help="When devices are online, how fast they are and what goes wrong: steady, nightly, "
            "churning, flaky or a file. Time is simulated; not with --engine loop."
        ),
    ] = "",
    target_f1: Annotated[
        float, typer.Option(help="With --trace: report the simulated hours to this macro-F1.")
    ] = 0.0,
    deadline_s: Annotated[
        float, typer.Option(help="Seconds from the push of a plan to the close of its round.")
    ] = 600.0,
    wait_s: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for enough devices before giving up; 0: 120, with --trace two "
            "days."
        ),
    ] = 0.0,
    min_devices: Annotated[
        int,
        typer.Option(
            help="Devices that must be online before a round opens; 0: all, with --trace a tenth."
        ),
    ] = 0,
    epochs: Annotated[int, typer.Option(help="Local passes per round.")] = 1,
    max_steps: Annotated[
        int, typer.Option(help="Most local steps per round and device; 0 for no limit.")
    ] = 0,
    batch: Annotated[int, typer.Option(help="Windows per local step.")] = 32,
    memory_budget: Annotated[
        str, typer.Option(help="What a training step may hold, e.g. 64MiB; 0 for no limit.")
    ] = "0",
    compression: Annotated[
        str,
        typer.Option(
            help="How updates are packed: none, int8 or int4; what that loses is added to a "
            "device's next update."
        ),
    ] = "none",
    base: Annotated[str, typer.Option(help="A base to start from; default: train one.")] = "",
    base_epochs: Annotated[int, typer.Option(help="Passes when a base is trained.")] = 12,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: runs/DATE-TIME.")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="cohort: many devices trained as one computation, on all cores; loop: one device "
            "at a time, equal up to rounding; ray-cohort: cohort on the nodes of a Ray cluster, "
            "same digests; ray: Flower's own runtime, on Ray, as flwr run . does it."
        ),
    ] = Engine.cohort,
    workers: Annotated[
        int,
        typer.Option(
            help="Threads that train, on Ray processes; 0: one per core. "
            "They change no bit of a result."
        ),
    ] = 0,
    ray_address: Annotated[
        str,
        typer.Option(
            help="With --engine ray-cohort: HOST:PORT of a cluster's head, auto or local; "
            "default: RAY_ADDRESS, or a cluster of this machine for the run."
        ),
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Run the main job and print what it came to."""
    from simulations.cli.scenario_run import run_scenario
    from simulations.simulate import open_run
    from simulations.simulate import simulate as run_simulation

    if run_scenario(context, out, resume=resume, form=form):
        return
    run = _run(context, out, resume)
    run = open_run(run, resume=resume)
    with _display(form) as progress:
        try:
            report = run_simulation(run, progress)
        except KeyboardInterrupt:
            progress.say(
                f"interrupted; nothing is lost. Go on with: "
                f"fleet simulate --out {run.folder} --resume"
            )
            raise
    emit(report, form, lambda console: _table(console, report))


def _run(context: typer.Context, out: Path | None, resume: bool) -> Run:
    from fleet.config import RunConfig
    from simulations.simulate import Run

    values = {k: v for k, v in context.params.items() if k not in NOT_CONFIG}
    if resume:
        return _resumed(context, out)
    if out is None:
        out = Path("runs") / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    values["memory_budget"] = bytes_of(values["memory_budget"])
    config = RunConfig.parse(values | {"out": str(out)})
    # The callback has an Engine, the context still its name.
    engine = Engine(context.params["engine"])
    names = tuple(dict.fromkeys(m.strip() for m in context.params["methods"].split(",") if m))
    rates = rates_of(context.params["rate"] or [])
    return Run(config, names, rates, engine, **_where(context))


def _resumed(context: typer.Context, out: Path | None) -> Run:
    from fleet.config import RunConfig
    from simulations.simulate import Run

    if out is None:
        raise InputError("nothing-to-resume", "--resume needs --out", "Name the run's folder.")
    given = [
        name
        for name in context.params
        if name not in {"resume", "form", "out", *WHERE}
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise InputError(
            "resume-with-flags",
            f"a resumed run keeps its configuration; --{given[0].replace('_', '-')} was given",
            "Leave out all flags but --out, --workers, --ray-address and --resume.",
        )
    config = RunConfig.parse({"out": str(out)})
    return Run(config, ("core",), {}, **_where(context))


def _where(context: typer.Context) -> dict[str, Any]:
    return {name: context.params[name] for name in WHERE}


def rates_of(given: list[str]) -> dict[str, float]:
    """Read ``METHOD=RATE`` flags.

    Raises:
        InputError: ``rate``.
    """
    rates = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            rates[name] = float(value)
        except ValueError as error:
            raise InputError(
                "rate", f"--rate takes METHOD=RATE, not {text!r}", "For example --rate core=0.1."
            ) from error
        if not 0 < rates[name] <= 100:
            raise InputError("rate", f"a learning rate is in (0, 100], not {rates[name]:g}", "")
    return rates


def _display(form: Format) -> Any:
    from simulations.cli.display import Display

    return Display(visible=form is Format.table)


def _field_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"in the field, simulated: {report['trace']['name']}")
    fields = {name: row["field"] for name, row in report["methods"].items() if "field" in row}
    table.add_column("")
    for name in fields:
        table.add_column(name, justify="right")
    cells = [field_cells(field) for field in fields.values()]
    names = field_headings(report["trace"]["target_f1"])
    for heading, *row in zip(names, *cells, strict=True):
        table.add_row(heading, *row)
    return table


def _table(console: Console, report: dict[str, Any]) -> None:
    table = Table(
        title=f"{report['devices']} devices · {report['rounds']} rounds · {report['data']}"
    )
    table.add_column("method")
    for name in ("macro-F1", "devices", "worst 10 %", "trained", "bytes up", "bytes down", "s"):
        table.add_column(name, justify="right")
    rows = {"before": report["before"], **report["methods"]}
    for name, row in rows.items():
        scores = [row and row[k] for k in ("macro_f1", "macro_f1_devices_mean")]
        scores.append(row and row["macro_f1_devices_worst_decile"])
        shown = ["n/a" if score is None else f"{score:.3f}" for score in scores]
        rest = ["", "", "", ""]
        if name != "before":
            counts = ("trained_parameters", "bytes_up", "bytes_down")
            rest = [*(f"{row[k]:,}" for k in counts), f"{row['seconds']:.0f}"]
        table.add_row(name, *shown, *rest)
    console.print(table)
    if report["trace"]:
        console.print(_field_table(report))
    if report["release"]:
        release = report["release"]
        console.print(f"release {release['number']} · {release['digest']}")
    console.print(f"report  {report['folder']}/report.md", soft_wrap=True)
    if report["leading"]:
        next_command = f"fleet release list {report['folder']}/{report['leading']}"
        console.print(f"next    {next_command}", soft_wrap=True, highlight=False)

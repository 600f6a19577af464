"""``fleet plan``: which layer gets how many columns for a budget of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit
from simulations.cli.units import bytes_of

if TYPE_CHECKING:
    from torch import nn

    from fleet.adapt.rank_plan import RankPlan

__all__ = ["app"]

app = typer.Typer(add_completion=False)

HELP = (
    "Choose the rank of each layer for a budget of bytes per device and round.\n\n"
    "Each column of a core costs four bytes per output of its layer. The planner buys the columns "
    "whose directions hold the largest share of their kernel's energy per byte, and prints the "
    "plan beside the one rank for all layers that fits the same budget."
)
EPILOG = """Examples:

fleet plan --bytes 2KiB --model t-resnet

fleet plan --bytes 10kB --base hapt-base.safetensors --head --format json
"""
UNTRAINED = (
    "These kernels are untrained: their spectra are flat and say little about the network that "
    "will be trained. Plan for a trained one with --base."
)
SIZES = ("model", "channels", "window", "classes")


@app.command(help=HELP, epilog=EPILOG)
def plan(
    context: typer.Context,
    budget: Annotated[str, typer.Option("--bytes", help="Bytes per update, e.g. 2KiB.")],
    model: Annotated[str, typer.Option(help="Backbone, untrained.")] = "t-resnet",
    channels: Annotated[int, typer.Option(help="Sensor channels.", min=1)] = 6,
    window: Annotated[int, typer.Option(help="Samples per window.", min=8)] = 128,
    classes: Annotated[int, typer.Option(help="Classes.", min=2)] = 6,
    base: Annotated[
        Path | None, typer.Option(help="A trained base, in place of a model and its sizes.")
    ] = None,
    head: Annotated[
        bool, typer.Option("--head", help="The head is trained too: its bytes come off the budget.")
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Print the plan."""
    if base is not None:
        for name in SIZES:
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise InputError(
                    "plan-base", f"a base has its own {name}; --{name} was given beside --base", ""
                )
        network, name = _of_base(base)
    else:
        network, name = _untrained(model, channels, window, classes), model
    data = _planned(network, bytes_of(budget), head) | {"model": name, "trained": base is not None}
    emit(data, form, lambda console: _table(console, data))


def _of_base(path: Path) -> tuple[nn.Module, str]:
    from fleet.adapt.base import load_base
    from fleet.adapt.network import folded_network

    base = load_base(path)
    return folded_network(base), f"{base.record.model.name} of {path}"


def _untrained(model: str, channels: int, window: int, classes: int) -> nn.Module:
    from pydantic import ValidationError

    from fleet.adapt.fold import fold
    from fleet.federate.records import problems_of
    from fleet.models.config import ModelConfig
    from fleet.models.registry import build

    try:
        config = ModelConfig(name=model, channels=channels, window=window, classes=classes)
    except ValidationError as error:
        raise InputError(
            "model-sizes", f"no model has these sizes: {problems_of(error)}"
        ) from error
    return fold(build(config))


def _planned(network: nn.Module, budget: int, head: bool) -> dict[str, Any]:
    """Plan the ranks and lay the plan out for printing."""
    from fleet.adapt.core_layer import adaptable_layers
    from fleet.adapt.rank_plan import costs_of, spectra_of, uniform_rank

    taken = _head_bytes(network) if head else 0
    spectra, costs = spectra_of(network), costs_of(network)
    chosen = _chosen(spectra, costs, budget, taken)
    most = {name: len(sigma) for name, sigma in spectra.items()}
    one = uniform_rank(costs, budget - taken, most)
    uniform = {name: min(one, most[name]) for name in costs}
    layers = [
        {
            "layer": name,
            "kernel": list(network.get_parameter(f"{name}.weight").shape),
            "rank": rank,
            "share": chosen.energy[name],
            "bytes": costs[name] * rank,
            "uniform_rank": uniform[name],
            "reason": chosen.refused.get(name, ""),
        }
        for name, rank in chosen.ranks.items()
    ]
    left = [{"layer": n, "reason": why} for n, why in adaptable_layers(network)[1].items()]
    return {
        "budget_bytes": budget,
        "head_bytes": taken,
        "bytes": taken + chosen.bytes,
        "shares": chosen.captured,
        "layers": layers,
        "not_adaptable": left,
        "uniform": {
            "rank": one,
            "bytes": taken + sum(costs[name] * rank for name, rank in uniform.items()),
            "shares": sum(_share(spectra[name], rank) for name, rank in uniform.items()),
        },
    }


def _chosen(spectra: dict[str, Any], costs: dict[str, int], budget: int, taken: int) -> RankPlan:
    """Plan with what the head leaves; an error names the budget with the head in it."""
    from fleet.adapt.rank_plan import plan_ranks

    try:
        return plan_ranks(spectra, costs, budget - taken)
    except InputError as error:
        if not taken or error.code != "budget-too-small":
            raise
        raise InputError(
            error.code,
            f"{budget:,} bytes are too few for the head ({taken:,}) and one column of any layer",
            f"The least useful budget is {taken + min(costs.values()):,} bytes.",
        ) from error


def _share(sigma: Any, rank: int) -> float:
    energy = (sigma**2).sum()
    return float((sigma[:rank] ** 2).sum() / energy) if energy else 0.0


def _head_bytes(network: nn.Module) -> int:
    from fleet.models.registry import HEAD

    return sum(4 * parameter.numel() for parameter in network.get_submodule(HEAD).parameters())


def _table(console: Console, data: dict[str, Any]) -> None:
    table = Table(title=f"{data['model']} · {data['budget_bytes']:,} bytes per update")
    table.add_column("layer", no_wrap=True)
    table.add_column("kernel", no_wrap=True)
    for name in ("share", "rank", "bytes", "uniform"):
        table.add_column(name, justify="right")
    for row in data["layers"]:
        shape = " × ".join(map(str, row["kernel"]))
        counts = (str(row["rank"]), f"{row['bytes']:,}", str(row["uniform_rank"]))
        table.add_row(row["layer"], shape, f"{row['share']:.2f}", *counts)
    if data["head_bytes"]:
        table.add_row("head", "dense", "", "", f"{data['head_bytes']:,}", "")
    ranks = str(sum(row["rank"] for row in data["layers"]))
    table.add_section()
    table.add_row("total", "", f"{data['shares']:.2f}", ranks, f"{data['bytes']:,}", "")
    console.print(table)
    console.print("share   of the kernel's energy that the rank's directions hold", highlight=False)
    one = data["uniform"]
    fits = f"rank {one['rank']} for all layers: {one['bytes']:,} bytes, shares {one['shares']:.2f}"
    none = "none fits: one column of every layer takes more"
    console.print(f"uniform {fits if one['rank'] else none}", highlight=False)
    if data["not_adaptable"]:
        console.print(f"left    {len(data['not_adaptable'])} depthwise convolutions carry no core")
    if not data["trained"]:
        console.print(f"note    {UNTRAINED}")

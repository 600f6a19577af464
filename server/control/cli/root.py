"""The ``fleet`` command: assembles the groups that the installed extras bring, lazily.

Nothing of a group is imported before it is asked for, so ``fleet --version`` is quick and a host
without an extra still runs the rest.
"""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import EntryPoint, entry_points, version

import click
import typer

from fleet.commands import Format, form_asked, nobody_reads
from fleet.errors import FleetError, InputError, Interrupted, UnavailableError
from server.control.cli.render import emit_error

__all__ = ["main", "root"]


GROUP = "corefleet.commands"

# A missing module tells which extra is absent; the group tells which extra to install.
EXTRA_OF_PACKAGE = {"simulations": "sim", "server": "server"}

SUMMARIES = {
    "audit": "Read who did what, and check that nobody changed it since.",
    "base": "Train and inspect bases, install them on a server.",
    "bench": "Measure Corefleet beside its peers, both sides in one run.",
    "data": "List, inspect and convert data sets.",
    "device": "Enrol devices, look at them, keep them out, let them in again.",
    "operator": "Make, list and take back certificates for those who steer from elsewhere.",
    "plan": "Choose the rank of each layer for a budget of bytes.",
    "policy": "Show and set how rounds are planned and who takes part.",
    "release": "List, show, compare, promote, pin, verify and merge releases.",
    "report": "Report a sweep, or runs beside each other.",
    "round": "List, show, watch, order, abort and recompute rounds.",
    "scenario": "List, show and plot what may happen to a fleet over months.",
    "server": "Make a server, run it, look after it.",
    "simulate": "Let a fleet of people learn from their own sensor data (the main job).",
    "sweep": "Run every combination of some values, in parallel, resumable.",
    "up": "Run a fleet in a box: the real server and real devices on this machine.",
}


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


class LazyRoot(click.Group):
    """A click group whose members are entry points, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all registered groups, sorted."""
        return sorted(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one group; ``None`` when there is none of that name."""
        point = _commands().get(cmd_name)
        if point is None:
            return None
        try:
            command = typer.main.get_command(point.load())
        except ModuleNotFoundError as error:
            raise _unavailable(cmd_name, point, error) from error
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the groups by their one-line summaries, without importing them."""
        rows = [(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _unavailable(name: str, point: EntryPoint, error: ModuleNotFoundError) -> FleetError:
    extra = EXTRA_OF_PACKAGE.get(point.value.split(".")[0], "sim")
    return UnavailableError(
        "extra-missing",
        f"`fleet {name}` needs the '{extra}' extra; the module {error.name} is not installed",
        f"Install it: pip install 'corefleet[{extra}]'",
    )


@click.group(
    cls=LazyRoot,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: fleet simulate --help",
)
@click.version_option(version("corefleet"), "-V", "--version", prog_name="fleet")
def root() -> None:
    """Corefleet: a fleet learns from real HAR data, core by core."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented codes.

    0 ok · 1 the operation failed · 2 connection or authentication · 3 timeout · 4 bad arguments or
    missing confirmation · 5 a bug · 130 interrupted.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    form = form_asked(arguments)
    try:
        outcome = root.main(args=arguments, prog_name="fleet", standalone_mode=False)
    except FleetError as error:
        emit_error(error, form)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        if form is Format.json:
            emit_error(Interrupted("interrupted", "interrupted by the user", ""), form)
        return Interrupted.exit_code
    except click.ClickException as error:
        emit_error(_usage(error), form)
        return InputError.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return 1
        traceback.print_exc()
        bug = FleetError("bug", "unexpected failure; the traceback above is a bug in Corefleet", "")
        emit_error(bug, form)
        return 5
    return outcome if isinstance(outcome, int) else 0


def _usage(error: click.ClickException) -> InputError:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"See: {error.ctx.command_path} --help"
    return InputError("usage", error.format_message(), hint)

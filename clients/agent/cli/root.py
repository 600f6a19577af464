"""The ``fleet-device`` command: a mapping from verbs to functions, imported when asked for.

``fleet-device --help`` imports no module of a verb, so it is quick on a small board, and a device
without torch or without an extra still runs the rest.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import click
import typer

from clients.agent.cli.render import emit_error
from fleet.commands import Format, form_asked, nobody_reads
from fleet.errors import FleetError, InputError, Interrupted, UnavailableError

__all__ = ["COMMANDS", "Verb", "main", "root", "run"]

PROGRAM = "fleet-device"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Args:
        target: ``module:name`` of a function, a typer app or a click command. A function's help is
            its docstring, and its attribute ``examples`` stands under it.
        summary: One line for ``--help``.
    """

    target: str
    summary: str


COMMANDS: Mapping[str, Verb] = {
    "base": Verb("clients.agent.cli.base:base", "List the bases held, or add one."),
    "doctor": Verb("clients.agent.cli.health:doctor", "Check the device; each problem with a fix."),
    "drift": Verb("clients.agent.cli.drift:drift", "Show what drift detectors have seen."),
    "enroll": Verb("clients.agent.cli.setup:enroll", "Print what the operator registers."),
    "export": Verb("clients.agent.cli.model:export", "Write the served model as ONNX."),
    "forget": Verb("clients.agent.cli.data:forget", "Delete what is kept of a person."),
    "infer": Verb("clients.agent.cli.model:infer", "Recognise activities with the served model."),
    "ingest": Verb("clients.agent.cli.ingest:ingest", "Take in samples: file, pipe, MQTT."),
    "init": Verb("clients.agent.cli.setup:init", "Make state directory, key pair and config."),
    "install-service": Verb(
        "clients.agent.cli.setup:install_service", "Write the systemd units, or print them."
    ),
    "label": Verb("clients.agent.cli.data:label", "Say what a person did, by time or by window."),
    "personal": Verb(
        "clients.agent.cli.personal:personal", "Show, turn on or off, or drop the private core."
    ),
    "release": Verb("clients.agent.cli.model:release", "List, use and verify releases."),
    "run": Verb(
        "clients.agent.cli.run:run", "Run the agent and its SuperNode, and keep them running."
    ),
    "statistics": Verb(
        "clients.agent.cli.statistics:statistics", "Show, turn on or off, or drop own statistics."
    ),
    "status": Verb("clients.agent.cli.health:status", "Say what is known of this device."),
    "trust": Verb("clients.agent.cli.trust:trust", "Pin the key that signs releases, or show it."),
}


class LazyRoot(click.Group):
    """A click group whose members are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all verbs, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb; ``None`` when there is none of that name."""
        verb = COMMANDS.get(cmd_name)
        if verb is None:
            return None
        module, _, name = verb.target.partition(":")
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise _unavailable(cmd_name, error) from error
        command = _command_of(getattr(loaded, name))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs by their one-line summaries, without importing them."""
        rows = [(name, COMMANDS[name].summary) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _command_of(target: object) -> click.Command:
    if isinstance(target, click.Command):
        return target
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    if not callable(target):
        raise TypeError(f"{target!r} is no command")
    app = typer.Typer(add_completion=False)
    app.command(epilog=getattr(target, "examples", None))(target)
    return typer.main.get_command(app)


def _unavailable(name: str, error: ModuleNotFoundError) -> FleetError:
    missing = error.name or "a module"
    if missing == "torch" or missing.startswith("torch."):
        hint = "Use a Python that has the device's torch; see: fleet-device doctor"
    elif missing.split(".")[0] == "clients":
        hint = "This installation is older than the command: upgrade corefleet."
    else:
        hint = "Install it: pip install 'corefleet[device-agent]'"
    return UnavailableError(
        "extra-missing",
        f"`{PROGRAM} {name}` needs the module {missing}, which is not installed",
        hint,
    )


@click.group(
    cls=LazyRoot,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: fleet-device init --name kitchen-1",
)
@click.version_option(version("corefleet"), "-V", "--version", prog_name=PROGRAM)
def root() -> None:
    """Corefleet on a device: recognise activities, and learn beside it."""


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
        outcome = root.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
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


if __name__ == "__main__":
    main()

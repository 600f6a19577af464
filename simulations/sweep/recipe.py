"""What a sweep runs: a TOML file of run-config keys, and axes of values for some of them.

title = "Rank and rate"          # optional

[run]                            # keys of docs/run-config.md
data = "synthetic"
rounds = 4

[sweep]                          # axes; the command line may replace them or add others
rank = [1, 2, 4]
method = ["core", "core,head"]   # a value with commas compares methods within one cell
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleet.config import RunConfig
from fleet.errors import FleetError, InputError
from fleet.federate.records import problems_of
from fleet.har.shifts import parse
from simulations.cli.units import bytes_of

__all__ = [
    "ALIASES",
    "KEYS",
    "Recipe",
    "Scalar",
    "check",
    "methods_in",
    "plain",
    "read_recipe",
    "with_axes",
]

Scalar = bool | int | float | str

ALIASES = {
    "lr": "learning-rate",
    "bs": "batch",
    "methods": "method",
    "ranks": "rank",
    "seeds": "seed",
}
# Where a cell writes is the sweep's own affair.
KEYS = tuple(key for key in RunConfig.parse({}).for_flower() if key != "out")
TABLES = ("title", "run", "sweep")
DOCS = "Its form is described in docs/sweeps.md, its keys in docs/run-config.md."


@dataclass(frozen=True)
class Recipe:
    """A recipe whose keys are known; its values are checked by :func:`check`.

    Args:
        where: What errors call it: the file, or the command line.
        title: Title of the report.
        run: Values that all cells share, by key.
        axes: Values of each axis, by key, in order.
    """

    where: str
    title: str
    run: Mapping[str, Scalar]
    axes: Mapping[str, tuple[Scalar, ...]]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: ``recipe-missing``, ``recipe-syntax`` or ``recipe-invalid``, which lists every
            problem.
    """
    import tomllib  # Python 3.11; only the simulation host comes here

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "recipe-missing", f"{path}: {error.strerror}", "Give the path of a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("recipe-syntax", f"{path} is no TOML: {error}", DOCS) from error
    problems = [_unknown("table", name, TABLES) for name in content if name not in TABLES]
    run, axes = (content.get(name, {}) for name in ("run", "sweep"))
    for name, table in (("run", run), ("sweep", axes)):
        if not isinstance(table, dict):
            problems.append(f"{name} is a table: [{name}], not {table!r}")
    _refuse(str(path), problems)
    run, axes = _keyed(run, problems), _keyed(axes, problems)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            problems.append(f"{key}: an axis is a list of values such as [1, 2], not {values!r}")
        if key in run:
            problems.append(f"{key} stands in [run] and in [sweep]; keep one of them")
    _refuse(str(path), problems)
    title = str(content.get("title", path.stem))
    return Recipe(str(path), title, run, {key: tuple(values) for key, values in axes.items()})


def with_axes(recipe: Recipe, texts: Iterable[str]) -> Recipe:
    """Return the recipe with axes of the command line, which replace its own of the same key.

    Args:
        recipe: The recipe.
        texts: ``KEY=VALUE,VALUE`` or ``KEY=[…]``, a TOML array, for values that hold commas.

    Raises:
        InputError: ``axis`` for a text of another form, ``recipe-invalid`` for an unknown key.
    """
    found: dict[str, tuple[Scalar, ...]] = {}
    problems: list[str] = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values.strip(" ,"):
            raise InputError(
                "axis",
                f"an axis is KEY=VALUE,VALUE, not {text!r}",
                "For example: fleet sweep recipe.toml rank=1,2,4 lr=0.03,0.1",
            )
        for key, chosen in _keyed({name.strip(): _split(text, values)}, problems).items():
            found[key] = chosen
    _refuse("the command line", problems)
    return replace(recipe, axes={**recipe.axes, **found})


def check(recipe: Recipe) -> None:
    """Check every value by itself, before hours are spent on the others.

    What only a whole configuration can tell (a rank that a layer does not allow) is left to its
    cell, which then fails alone.

    Raises:
        InputError: ``recipe-invalid`` with every problem.
    """
    values = [(key, value) for key, value in recipe.run.items() if key not in recipe.axes]
    values += [(key, value) for key, axis in recipe.axes.items() for value in axis]
    _refuse(recipe.where, list(filter(None, (_problem(key, value) for key, value in values))))


def plain(key: str, value: Scalar) -> Scalar:
    """Return a value as the run configuration takes it: sizes in bytes, one method."""
    if key == "memory-budget" and isinstance(value, str):
        return bytes_of(value)
    if key == "method" and isinstance(value, str):
        return methods_in(value)[0]
    return value


def methods_in(value: Scalar) -> tuple[str, ...]:
    """Return the methods of one cell, each once, in order."""
    names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
    return names or ("",)


def _keyed(table: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return a table under the keys of the run configuration; unknown ones become problems."""
    found = {}
    for name, value in table.items():
        key = ALIASES.get(name, name.replace("_", "-"))
        if key == "out":
            problems.append("out: every cell has a folder of its own under the sweep's --out")
        elif key not in KEYS:
            problems.append(_unknown("key", name, (*KEYS, *ALIASES)))
        else:
            found[key] = value
    return found


def _split(text: str, values: str) -> tuple[Scalar, ...]:
    if not values.startswith("["):
        return tuple(part.strip() for part in values.split(",") if part.strip())
    import tomllib

    try:
        found: list[Scalar] = tomllib.loads(f"axis = {values}")["axis"]
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            "axis", f"{text!r} holds no TOML array: {error}", """Write method='["core,head"]'."""
        ) from error
    return tuple(found)


def _problem(key: str, value: Scalar) -> str:
    """Return what is wrong with a value, or nothing."""
    try:
        RunConfig.model_validate({key: plain(key, value)})
        _check_name(key, value)
    except ValidationError as error:
        return f"{key} = {value!r}: {problems_of(error).partition(': ')[2]}"
    except FleetError as error:
        return f"{key} = {value!r}: {error.message}"
    return ""


def _check_name(key: str, value: Scalar) -> None:
    from fleet.models import registry
    from simulations.simulate import METHOD_NAMES

    if key in ("shift", "variation"):
        parse(str(value))
    known = {"method": METHOD_NAMES, "model": tuple(registry.names())}.get(key, ())
    given = methods_in(value) if key == "method" else (str(value),)
    for name in given if known else ():
        if name not in known:
            raise InputError("unknown-name", _unknown(key, name, known))


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no {what} {name!r}{meant}; known: {', '.join(known)}"


def _refuse(where: str, problems: list[str]) -> None:
    if len(problems) == 1:
        raise InputError("recipe-invalid", f"{where}: {problems[0]}", DOCS)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise InputError("recipe-invalid", f"{where}: {len(problems)} problems:{lines}", DOCS)

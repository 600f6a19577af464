"""The rules of the tree: who may import whom, and what nothing may call."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from fleet.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fleet", "clients", "server", "simulations")
MODULES = sorted(
    path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
SHIMS = sorted(path.relative_to(ROOT) for path in (ROOT / "corefleet_app").rglob("*.py"))

FORBIDDEN = {
    "fleet": {
        *("clients", "server", "simulations"),
        *("flwr", "grpc", "ray", "sqlalchemy", "typer", "rich", "sklearn"),
    },
    "clients": {"server", "simulations", "sqlalchemy", "sklearn"},
    "server": {"clients", "simulations", "sklearn"},
    "simulations": {"sklearn"},
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOOKED_AT = (ast.Import, ast.ImportFrom, ast.Call, ast.Attribute, ast.keyword)
LOADERS = {"torch.load", "torch.jit.load", "torch.package", "pandas.read_pickle"}


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), str(module))


def nodes_in(tree: ast.AST) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if isinstance(node, LOOKED_AT)]


@cache
def nodes_of(module: Path) -> list[ast.AST]:
    """What the rules look at of a module; to walk through all of them takes seconds."""
    return nodes_in(tree_of(module))


def imports_of(nodes: Sequence[ast.AST]) -> set[str]:
    """Full dotted names of everything imported, at the top of the file or later."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, (ast.Name, ast.Attribute))
            and getattr(node.func, "attr", getattr(node.func, "id", ""))
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


def unsafe_loads(nodes: Sequence[ast.AST]) -> list[str]:
    """What could unpickle: a module that does, a loader that does, or numpy allowed to."""
    imports = imports_of(nodes)
    found = [name for name in imports if name.split(".")[0] in UNPICKLERS]
    found += [name for name in imports if name in LOADERS]
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node) in LOADERS:
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            value = node.value
            if not (isinstance(value, ast.Constant) and value.value is False):
                found.append("allow_pickle")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "__import__('dill')",
    ],
)
def test_the_scan_finds_what_could_unpickle(text: str) -> None:
    assert unsafe_loads(nodes_in(ast.parse(text)))


def test_the_scan_lets_safe_loads_pass() -> None:
    text = "import numpy as np, json\nnp.load('x', allow_pickle=False)\njson.load(f)"
    assert unsafe_loads(nodes_in(ast.parse(text))) == []


def test_the_scan_sees_late_and_dynamic_imports() -> None:
    text = "import a.b\ndef f():\n    from c import d\n    importlib.import_module('e.f')"
    assert imports_of(nodes_in(ast.parse(text))) == {"a.b", "c.d", "e.f"}


def test_the_packages_are_all_there() -> None:
    assert {module.parts[0] for module in MODULES} == set(PACKAGES)
    assert len(MODULES) > 40


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    wrong = {
        f"{module} imports {name}"
        for module in MODULES
        if module.parts[0] == package
        for name in imports_of(nodes_of(module))
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert wrong == set()


def test_the_agent_of_a_device_needs_no_flower() -> None:
    wrong = {
        f"{module} imports {name}"
        for module in MODULES
        if module.parts[:2] == ("clients", "agent")
        for name in imports_of(nodes_of(module))
        if name.split(".")[0] in ("flwr", "grpc") or name.startswith("clients.bridge")
    }
    assert wrong == set()


def test_the_link_between_a_devices_processes_knows_neither() -> None:
    foreign = ("flwr", "torch", "clients.agent", "clients.bridge")
    wrong = {
        f"{module} imports {name}"
        for module in MODULES
        if module.parts[:2] == ("clients", "link")
        for name in imports_of(nodes_of(module))
        if any(f"{name}.".startswith(f"{each}.") for each in foreign)
    }
    assert wrong == set()


@pytest.mark.parametrize("module", [*MODULES, *SHIMS], ids=str)
def test_nothing_is_ever_unpickled(module: Path) -> None:
    assert unsafe_loads(nodes_of(module)) == []


def test_every_module_says_what_it_is() -> None:
    silent = [str(module) for module in MODULES if not (ast.get_docstring(tree_of(module)) or "")]
    assert silent == []


def loaded_by(statement: str) -> set[str]:
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_what_a_bridge_needs_of_fleet_loads_no_torch() -> None:
    loaded = loaded_by("import fleet, fleet.errors, fleet.federate.records, fleet.federate.wire")
    assert "fleet" in loaded
    assert loaded & {"torch", "scipy", "matplotlib", "flwr", "grpc", "typer", "sklearn"} == set()


def test_what_the_link_speaks_loads_neither_grpc_nor_protobuf() -> None:
    loaded = loaded_by("import clients.link.records, clients.link.transport")
    assert "fleet" in loaded
    assert loaded & {"grpc", "google", "flwr", "torch"} == set()


def test_the_link_loads_no_torch_and_no_flower() -> None:
    loaded = loaded_by("import clients.link.caller, clients.link.service")
    assert "grpc" in loaded
    assert loaded & {"flwr", "torch", "typer"} == set()


def test_the_method_loads_no_flower_and_no_command_line() -> None:
    own = [m for m in MODULES if m.parts[0] == "fleet" and m.name != "__init__.py"]
    names = ", ".join(".".join(m.with_suffix("").parts) for m in own)
    loaded = loaded_by(f"import {names}")
    assert "torch" in loaded
    assert loaded & FORBIDDEN["fleet"] == set()


def test_the_run_configuration_of_the_app_is_that_of_the_code() -> None:
    import tomllib  # late: Python 3.10 has none, and devices run the rest of this file on it

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    written = project["tool"]["flwr"]["app"]["config"]
    wanted = RunConfig().for_flower()
    assert written == wanted
    assert {key: type(value) for key, value in written.items()} == {
        key: type(value) for key, value in wanted.items()
    }

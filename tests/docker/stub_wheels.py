"""Wheels of a few lines, so that an installation takes a second and can be made to go wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TORCH = "2.5.0a0+872d972e41.nv24.8"
PACKAGES = {
    "agent": {
        "clients/agent/store/store.py": "",
        "clients/agent/cli/root.py": "def main():\n    return 0\n",
    },
    "bridge": {"fleet/federate/wire.py": ""},
}


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    extras = sorted({line.split("extra == '")[1].rstrip("'") for line in requires})
    lines = [
        *("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"),
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    whole = {
        **files,
        f"{about}/METADATA": "\n".join(lines) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    whole[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*whole, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, text in whole.items():
            file.writestr(path, text)


def write_half(
    folder: Path, half: str, *, requires: Sequence[str] = (), files: Mapping[str, str] | None = None
) -> Path:
    """Write a wheel of corefleet that holds what the script looks for in one half of a device."""
    lines = [f"{line} ; extra == 'device-{half}'" for line in requires]
    lines += [f"stub ; extra == 'device-{half}'"]
    write_wheel(folder, "corefleet", "0.1.0", {**PACKAGES[half], **(files or {})}, lines)
    write_wheel(folder, "stub", "1.0", {"stub.py": ""})
    return folder


def unpack_torch(folder: Path, version: str = TORCH) -> Path:
    """Put a torch into a folder for PYTHONPATH, as a system's own lies beside an environment."""
    about = folder / f"torch-{version}.dist-info"
    (folder / "torch").mkdir(parents=True)
    about.mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('no driver while building')")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    (about / "RECORD").write_text("torch/__init__.py,,\n")
    (about / "INSTALLER").write_text("pip\n")
    return folder

"""Every effect that serving has on files, counted, so that the n-th can fail or be the last.

Run as a script it kills real processes with SIGKILL at every effect in turn:

    python -m tests.clients.agent.serving.effects TEMPLATE FOLDER SCENARIO
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.recover import recover
from clients.agent.serving.serve import Serving
from clients.agent.serving.whole import open_best
from fleet import files

HOOKED: tuple[tuple[Any, str], ...] = (
    (files, "_write_all"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (os, "mkdir"),
)


class CutOffError(BaseException):
    """Nothing runs after it: from the n-th effect on, every effect raises it again."""


class Effects:
    """Counts file effects and does something at the n-th.

    Args:
        at: Number of the effect, from 1.
        on: Called before that effect instead of it, with its name and arguments.
    """

    def __init__(self, at: int, on: Callable[[str, tuple[Any, ...]], None]) -> None:
        self.at, self.on, self.count = at, on, 0

    def hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, name in HOOKED:
            monkeypatch.setattr(owner, name, self._counting(name, getattr(owner, name)))

    @property
    def reached(self) -> bool:
        return self.count >= self.at

    def _counting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def effect(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.on(name, args)
            elif self.count > self.at and self.on is cut_off:
                raise CutOffError
            return original(*args, **kwargs)

        return effect


def cut_off(name: str, args: tuple[Any, ...]) -> None:
    """End as in a power cut, half-way through a write."""
    if name == "_write_all":
        file, content = args
        file.write(content[: len(content) // 2])
        file.flush()
    raise CutOffError


def disk_full(name: str, args: tuple[Any, ...]) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_read_only(name: str, args: tuple[Any, ...]) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def kill(name: str, args: tuple[Any, ...]) -> None:
    if name == "_write_all":
        file, content = args
        file.write(content[: len(content) // 2])
        file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def install(state: Path) -> None:
    Serving(state).install_base(state.parent.parent / "base.safetensors")


def promote(state: Path) -> None:
    """Serve the newest kept release and take nothing new: the last of three."""
    serving = Serving(state)
    serving.promote(serving.held.kept(3))


def roll_back(state: Path) -> None:
    serving = Serving(state)
    serving.promote(serving.held.kept(1))


def start(state: Path) -> None:
    """Start up where the served kernels are damaged and a write was cut off."""
    recover(Serving(state))


SCENARIOS: dict[str, Callable[[Path], None]] = {
    "install": install,
    "promote": promote,
    "roll_back": roll_back,
    "start": start,
}


def main(template: Path, folder: Path, scenario: str) -> None:
    """Fork a process per effect and kill it there; print how many there were."""
    open_best(ModelFolder(template))  # what is folded here, no child has to fold
    for at in range(1, 100):
        state = folder / str(at)
        if template.exists():
            shutil.copytree(template, state)
        child = os.fork()
        if child == 0:
            Effects(at, kill).hook(pytest.MonkeyPatch())
            SCENARIOS[scenario](state)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, status
            print(at - 1)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    raise AssertionError("more than 100 effects")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

try:
    import torch
except ModuleNotFoundError:  # `make test-py310` runs the part of the tests that needs none
    torch = None

# Hypothesis fails what takes over 200 ms; on a busy machine that says nothing of the code.
settings.register_profile("corefleet", deadline=None)
settings.load_profile("corefleet")

MEMORY = Path("/dev/shm")
# Ten times the largest folder that a run of the tests has left.
ROOM_BYTES = 2 << 30


def has_room(folder: Path) -> bool:
    """Whether a folder is there, large enough, and lets programs in it run."""
    return (
        os.access(folder, os.W_OK)
        and shutil.disk_usage(folder).free >= ROOM_BYTES
        and not os.statvfs(folder).f_flag & os.ST_NOEXEC
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary folders in memory, and let workers have files in the order below."""
    # A durable write waits for its disk; what tests cut off, they cut off without its help.
    if "TMPDIR" not in os.environ and has_room(MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
    # By default those of few tests come last.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage among half a million objects that all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give files of few tests to workers first: one of them may be a whole fleet of processes.

    Were it the last, one worker would wait for the other as long as it takes.
    """
    if hasattr(config, "workerinput"):
        counts = Counter(item.path for item in items)
        items.sort(key=lambda item: counts[item.path])


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are fifteen times slower on two busy cores than on one."""
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)

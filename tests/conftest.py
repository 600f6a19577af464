from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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


def pytest_configure(config: pytest.Config) -> None:
    """Let workers have files in the order below; by default those of few tests come last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


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

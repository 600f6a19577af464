"""A pool of workers without processes, for tests of what is done and not of how."""

from __future__ import annotations

from typing import Any

from simulations.benchmarks.peft.workers import Workers


class Inline(Workers):
    """Jobs run in this process: for tests that are not about processes."""

    def __init__(self, count: int, begin: Any, arguments: Any) -> None:
        begin(*arguments)

    def __exit__(self, *error: object) -> None: ...

    def run(self, progress: Any, name: str, job: Any, items: Any, total: int) -> None:
        items = list(items)
        progress.stage(name, len(items))
        for item in items:
            progress.advance(job(item))

"""Who is asked again, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.asking import ASK_AGAIN_S, Asking
from simulations.inprocess import InProcessGrid

STATUS = {"device": "kitchen-1", "train_windows": 3, "test_windows": 1, "reason": ""}
SERVES = {"serves": "0b" * 32, "release": 0}


class Changing:
    """A device whose word about itself a test changes."""

    def __init__(self, **says: Any) -> None:
        self.says = {**STATUS, **says}
        self.asked = 0
        self.app = ClientApp()
        self.app.query("status")(self._status)

    def _status(self, message: Message, context: Context) -> Message:
        self.asked += 1
        content = {k: v for k, v in self.says.items() if v is not None}
        return Message(RecordDict({"config": ConfigRecord(content)}), reply_to=message)


class Watch:
    """A clock that goes on when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def asking_of() -> Iterable[Callable[[Changing], tuple[Asking, Watch]]]:
    grids = []

    def make(device: Changing) -> tuple[Asking, Watch]:
        grid, watch = InProcessGrid(device.app, 1), Watch()
        grids.append(grid)
        return Asking(grid, lambda: watch.now, watch.wait, "test"), watch

    yield make
    for grid in grids:
        grid.close()


def declined(device: Changing) -> None:
    device.says = {"format": 1, "declined": "agent-away", "detail": "not now"}


def test_a_device_whose_agent_was_away_is_asked_again_after_a_while(
    asking_of: Callable[[Changing], tuple[Asking, Watch]],
) -> None:
    device = Changing()
    declined(device)
    asking, watch = asking_of(device)
    assert asking.discover(5.0) == ()
    assert asking.discover(5.0) == ()
    assert device.asked == 1  # not at every look
    device.says = {**STATUS, **SERVES}
    watch.wait(ASK_AGAIN_S)
    assert asking.discover(5.0) == ("kitchen-1",)
    assert asking.unusable == {}
    watch.wait(ASK_AGAIN_S)
    asking.discover(5.0)
    assert device.asked == 2


def test_a_device_that_waits_for_labels_joins_once_it_has_some(
    asking_of: Callable[[Changing], tuple[Asking, Watch]],
) -> None:
    device = Changing(reason="no labelled windows to train on", **SERVES)
    asking, watch = asking_of(device)
    assert asking.discover(5.0) == ()
    assert asking.serving == {"kitchen-1": next(iter(asking.serving.values()))}
    device.says["reason"] = ""
    watch.wait(ASK_AGAIN_S)
    assert asking.discover(5.0) == ("kitchen-1",)


def test_a_simulated_device_without_windows_is_asked_once(
    asking_of: Callable[[Changing], tuple[Asking, Watch]],
) -> None:
    device = Changing(reason="no labelled windows to train on")
    asking, watch = asking_of(device)
    for _ in range(3):
        assert asking.discover(5.0) == ()
        watch.wait(ASK_AGAIN_S)
    assert device.asked == 1

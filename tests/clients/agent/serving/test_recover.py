"""Start-up: what is damaged is passed over, and something whole is served in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.agent.serving.folder import CURRENT, LAST_GOOD, ModelFolder
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.recover import START_TRIES, recover
from clients.agent.serving.serve import Serving
from fleet.errors import StorageError
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import promoted, raw_windows


@pytest.fixture
def two(state: Path, releases: list[Release]) -> Serving:
    """Serves release 2; release 1 is last known good."""
    promoted(state, releases[1])
    promoted(state, releases[2])
    return Serving(state)


def damage(folder: ModelFolder, *which: str) -> None:
    for each in which:
        pointer = folder.pointer(each)
        assert pointer is not None
        folder.served_file(pointer.name).write_bytes(b"no safetensors")


def test_what_is_whole_stays_and_nothing_is_said(two: Serving) -> None:
    before = two.folder.identity()
    recovery = recover(two)
    assert (recovery.source, recovery.served.number) == ("current", 2)
    assert (recovery.problems, recovery.cleared) == ((), ())
    assert two.folder.identity() == before


def test_leftovers_of_cut_off_writes_are_cleared_and_named(two: Serving) -> None:
    left = [
        two.folder.path / ".current.1-2.tmp",
        two.folder.releases / ".000003-ab.safetensors.1-2.tmp",
        two.folder.served / "000003-abababababababab.safetensors",
    ]
    for path in left:
        path.write_bytes(b"half")
    recovery = recover(two)
    assert recovery.cleared == tuple(sorted(path.name for path in left))
    assert not any(path.exists() for path in left)


def test_damaged_kernels_send_it_back_to_last_known_good(two: Serving) -> None:
    damage(two.folder, CURRENT)
    wanted = two.last_good
    recovery = recover(two)
    assert (recovery.source, recovery.served) == ("last-good", wanted)
    assert len(recovery.problems) == 1
    assert "is no whole safetensors file" in recovery.problems[0]
    assert two.served == wanted
    # Its core state is still there: the same release can be tried again, with the same digest.
    assert two.promote(two.held.kept(2)).swapped


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"number": 2}', b"\xff", b"x" * 9999])
def test_a_damaged_pointer_sends_it_back_to_last_known_good(two: Serving, content: bytes) -> None:
    (two.folder.path / CURRENT).write_bytes(content)
    recovery = recover(two)
    assert (recovery.source, recovery.served.number) == ("last-good", 1)
    assert "does not name a served model" in recovery.problems[0]


def test_with_both_damaged_the_newer_is_merged_again_to_the_same_digest(two: Serving) -> None:
    wanted = two.served
    damage(two.folder, CURRENT, LAST_GOOD)
    recovery = recover(two)
    assert (recovery.source, recovery.served) == ("merged-again", wanted)
    assert len(recovery.problems) == 2
    assert recover(two).source == "current"


def test_with_nothing_but_the_base_whole_the_base_is_served(two: Serving) -> None:
    damage(two.folder, CURRENT, LAST_GOOD)
    for path in two.folder.releases.iterdir():
        path.write_bytes(b"no safetensors")
    recovery = recover(two)
    assert (recovery.source, recovery.served.number) == ("base", 0)
    assert len(recovery.problems) == 4
    assert recover(two).source == "current"


def test_a_base_that_cannot_be_written_is_served_from_memory(
    two: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(two.folder, CURRENT, LAST_GOOD)
    for path in two.folder.releases.iterdir():
        path.unlink()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fleet.files._write_all", refuse)
    recovery = recover(two)
    assert (recovery.source, recovery.served.number) == ("memory", 0)
    model = DeviceModel(two.folder.path.parent)
    assert len(model.predict(raw_windows(2))[0]) == 2
    assert model.served.number == 0


def test_a_damaged_base_does_not_stop_what_is_served(two: Serving) -> None:
    two.folder.base.write_bytes(b"no safetensors")
    recovery = recover(Serving(two.folder.path.parent))
    assert (recovery.source, recovery.served.number) == ("current", 2)
    outcome = Serving(two.folder.path.parent).promote(two.held.kept(1))
    assert (outcome.swapped, outcome.reason) == (False, "bundle-damaged")


def test_with_nothing_whole_at_all_the_error_says_so(two: Serving) -> None:
    damage(two.folder, CURRENT, LAST_GOOD)
    two.folder.base.write_bytes(b"no safetensors")
    state = two.folder.path.parent
    with pytest.raises(StorageError) as recovering:
        recover(Serving(state))
    with pytest.raises(StorageError) as reading:
        DeviceModel(state)
    assert recovering.value.code == "bundle-damaged"
    assert reading.value.code == "nothing-to-serve"
    assert "init --base" in reading.value.hint


def test_a_device_without_a_base_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        recover(Serving(tmp_path))
    assert refused.value.code == "no-model"


def test_a_release_under_which_start_ups_die_is_left_for_last_known_good(two: Serving) -> None:
    current = two.served
    assert current is not None
    for _ in range(START_TRIES):
        two.folder.starts_begun(current.name)  # and the process ended there
    recovery = recover(two)
    assert (recovery.source, recovery.served.number) == ("last-good", 1)
    assert "3 start-ups in a row ended" in recovery.problems[0]
    assert recover(two).source == "current"


def test_start_ups_that_end_well_are_not_counted_together(two: Serving) -> None:
    for _ in range(START_TRIES + 2):
        assert recover(two).source == "current"


def test_start_ups_under_another_release_start_a_new_count(two: Serving) -> None:
    assert [two.folder.starts_begun("a"), two.folder.starts_begun("a")] == [1, 2]
    assert two.folder.starts_begun("b") == 1
    (two.folder.path / "starting").write_text("b many")
    assert two.folder.starts_begun("b") == 1

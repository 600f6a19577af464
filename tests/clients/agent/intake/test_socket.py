from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from clients.agent.intake.sources import connections, ingest_stream
from fleet.errors import InputError, StorageError
from tests.clients.agent.intake.recordings import small_spec
from tests.clients.agent.store.windows import opened

IDLE_S = 20.0


def send(path: Path, first: int, count: int) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for at in range(first, first + count):
            client.sendall(json.dumps({"time": at / 50, "a": at, "b": -at}).encode() + b"\n")


def test_samples_come_in_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with opened(tmp_path / "state") as store, connections(path, IDLE_S) as streams:
        assert path.stat().st_mode & 0o077 == 0
        for first in (0, 5):
            sender = threading.Thread(target=send, args=(path, first, 5 + first))
            sender.start()
            with next(streams) as stream:
                ingest_stream(stream, "jsonl", small_spec(), store, "ada", "waist")
            sender.join(IDLE_S)
        found = store.windows.load((2, 8))
        np.testing.assert_array_equal(found.x[:, 0], [np.arange(8), np.arange(4, 12)])
    assert not path.exists()


def test_silence_ends_a_connection_and_the_wait_for_one(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with (
        opened(tmp_path / "state") as store,
        connections(path, 0.05) as streams,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(path))
        client.sendall(b'{"time": 0, "a": 1, "b": 2}\n')
        report = ingest_stream(next(streams), "jsonl", small_spec(), store, "ada", "waist")
        assert report.samples == 1
        assert list(streams) == []


def test_a_stale_socket_is_replaced_and_a_taken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with connections(path, IDLE_S):
        pass
    (tmp_path / "file").write_text("no socket")
    with connections(path, IDLE_S):
        for taken in (path, tmp_path / "file"):
            with pytest.raises(InputError) as caught, connections(taken, IDLE_S):
                pass
            assert caught.value.code == "socket-taken"
    assert (tmp_path / "file").exists()


def test_a_socket_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, connections(tmp_path / "no" / "x", IDLE_S):
        pass
    assert caught.value.code == "socket-refused"

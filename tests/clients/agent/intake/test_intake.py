from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.agent.intake import Intake, Stream
from clients.agent.intake.bench import measure
from clients.agent.intake.parse import Chunk
from clients.agent.intake.sources import form_of, ingest_file, ingest_stream
from clients.agent.store import Store
from fleet.errors import DataError, InputError, StorageError
from fleet.har import synthetic
from tests.clients.agent.intake.recordings import (
    Array,
    rejoined,
    small_spec,
    streamed,
    write_csv,
)
from tests.clients.agent.store.windows import opened

ROOT = Path(__file__).resolve().parents[4]
SHAPE = (2, 8)


def recording(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Jittered samples with a gap in the middle."""
    random = np.random.default_rng(seed)
    times = 1.7e9 + np.arange(count) / 50 + random.uniform(0, 0.004, count)
    times[count // 2 :] += 0.5
    return times, random.normal(size=(count, 2))


def expected(times: Array, values: Array) -> np.ndarray:
    return Stream(small_spec()).push(times, values).signals


def test_a_file_becomes_windows_and_a_second_time_adds_nothing(tmp_path: Path) -> None:
    times, values = recording(200)
    path = write_csv(tmp_path / "walk.csv", ("a", "b"), times, values)
    with opened(tmp_path / "state") as store:
        report = ingest_file(path, "csv", small_spec(), store, "ada")
        assert (report.samples, report.segments, report.gaps) == (200, 2, 1)
        assert report.new == report.windows == len(expected(times, values))
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))
        again = ingest_file(path, "csv", small_spec(), store, "ada")
        assert (again.samples, again.windows, again.new) == (0, 0, 0)
        copy = tmp_path / "copy.csv"
        copy.write_bytes(path.read_bytes())
        assert ingest_file(copy, "csv", small_spec(), store, "ada").samples == 0
        assert ingest_file(path, "csv", small_spec(), store, "ben").new == report.new
        assert store.counters.all()["intake.samples"] == 400
        assert store.counters.all()["intake.gaps"] == 2


@pytest.mark.parametrize("cut", [40, 1000, 2777, 5000])
def test_a_growing_file_gives_the_windows_of_the_whole(tmp_path: Path, cut: int) -> None:
    times, values = recording(200)
    path = write_csv(tmp_path / "walk.csv", ("a", "b"), times, values)
    content = path.read_bytes()
    with opened(tmp_path / "state") as store:
        for end in (cut, cut + 1500, len(content)):
            path.write_bytes(content[:end])
            ingest_file(path, "csv", small_spec(), store, "ada", block_bytes=700)
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))


def test_an_intake_killed_over_and_over_loses_and_repeats_nothing(tmp_path: Path) -> None:
    times, values = recording(300)
    path = write_csv(tmp_path / "walk.csv", ("a", "b"), times, values)
    state = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.agent.intake.killed", str(path), str(state)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deaths"] > 20
    with opened(state) as store:
        assert store.notices == ()
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))
        counters = store.counters.all()
        assert counters["intake.samples"] == 300
        assert counters["intake.windows"] == len(expected(times, values))


def test_an_intake_goes_on_when_a_full_disk_has_room_again(tmp_path: Path) -> None:
    times, values = recording(4000)
    path = write_csv(tmp_path / "walk.csv", ("a", "b"), times, values)
    with opened(tmp_path / "state") as store:
        pages = store.database.number("PRAGMA page_count")
        limit = store.database.connection.execute
        limit(f"PRAGMA max_page_count = {pages + 12}").fetchall()
        with pytest.raises(StorageError) as caught:
            ingest_file(path, "csv", small_spec(), store, "ada", block_bytes=4000)
        assert caught.value.code == "disk-full"
        before = len(store.windows.load(SHAPE).ids)
        assert 0 < before < len(expected(times, values))
        limit("PRAGMA max_page_count = 1000000").fetchall()
        ingest_file(path, "csv", small_spec(), store, "ada")
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))


def test_one_intake_goes_on_after_a_refused_write(tmp_path: Path) -> None:
    times, values = recording(60)
    with opened(tmp_path) as store:
        intake = Intake(small_spec(), store, "ada", "s")
        intake.take(Chunk(times[:30], values[:30], 1))
        store.database.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError):
            intake.take(Chunk(times[30:], values[30:], 2))
        store.database.connection.execute("PRAGMA query_only = OFF")
        intake.take(Chunk(times[30:], values[30:], 2))
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))
        assert intake.report().malformed == 3
        assert store.counters.all()["intake.malformed"] == 3


def test_a_data_set_streamed_from_a_file_comes_back_bit_for_bit(tmp_path: Path) -> None:
    dataset = synthetic.make(people=1, windows_per_activity=4)
    rows = np.arange(len(dataset.x))
    columns = tuple(channel.name for channel in dataset.channels)
    path = write_csv(tmp_path / "p.csv", columns, *streamed(rejoined(dataset, rows), 50.0))
    spec = small_spec(columns=columns, factors=(1.0,) * 6, window=128, stride=64)
    with opened(tmp_path / "state") as store:
        ingest_file(path, "csv", spec, store, "ada")
        np.testing.assert_array_equal(store.windows.load((6, 128)).x, dataset.physical())


def lines(times: Array, values: Array) -> bytes:
    rows = ({"time": at, "b": b, "a": a} for at, (a, b) in zip(times, values, strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def take(store: Store, content: bytes) -> int:
    stream = io.BytesIO(content)
    return ingest_stream(stream, "jsonl", small_spec(), store, "ada", "waist").new


def test_a_stream_goes_on_where_an_earlier_one_of_its_name_ended(tmp_path: Path) -> None:
    times, values = recording(100)
    with opened(tmp_path) as store:
        for part in (slice(0, 33), slice(33, 34), slice(34, 100)):
            take(store, lines(times[part], values[part]))
        np.testing.assert_array_equal(store.windows.load(SHAPE).x, expected(times, values))
        assert take(store, lines(times, values)) == 0


def test_a_stream_may_end_without_a_line_end(tmp_path: Path) -> None:
    times, values = recording(8)
    times = 1.7e9 + np.arange(8) / 50
    with opened(tmp_path) as store:
        assert take(store, lines(times, values).rstrip(b"\n")) == 1


def test_bad_lines_are_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    rows = [f"{at / 50},{at},{-at}" for at in range(40)]
    rows[7], rows[20], rows[21] = "0.14,broken,1", "", "0.42,1"
    path.write_text("time,a,b\r\n" + "\r\n".join(rows) + "\r\n")
    with opened(tmp_path / "state") as store:
        report = ingest_file(path, "csv", small_spec(), store, "ada")
    assert (report.samples, report.malformed, report.segments) == (37, 2, 1)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_found_by_name_whatever_stands_between(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "walk.tsv"
    rows = [("b", "note", "time", "a"), *((-at, '"x"', at * 20, at) for at in range(8))]
    text = "\ufeff" + "\n".join(delimiter.join(map(str, row)) for row in rows) + "\n"
    path.write_text(text, encoding="utf-8")
    with opened(tmp_path / "state") as store:
        ingest_file(path, "csv", small_spec(time_unit="ms"), store, "ada")
        found = store.windows.load(SHAPE)
        assert found.x[0].tolist() == [list(range(8)), [-at for at in range(8)]]
        assert found.start_s.tolist() == [0.0]


def refused(path: Path, store: Store, form: str = "csv") -> DataError:
    with pytest.raises(DataError) as caught:
        ingest_file(path, form, small_spec(), store, "ada")  # type: ignore[arg-type]
    return caught.value


def test_what_is_no_recording_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    with opened(tmp_path / "state") as store:
        assert refused(path, store).code == "source-unreadable"
        path.write_text("")
        assert refused(path, store).code == "source-empty"
        path.write_text("t,x\n1,2\n")
        error = refused(path, store)
        assert error.code == "columns-missing"
        assert "no column 'time'" in error.message
        path.write_text("time,a,b\nno,num,ber\n")
        assert refused(path, store).code == "source-unreadable"
        assert refused(path, store, "jsonl").code == "source-unreadable"
        path.write_text("time,a,b\n" + "9" * 70_000)
        assert refused(path, store).code == "line-too-long"
        assert store.windows.counts() == {}


def test_a_file_rewritten_behind_its_beginning_is_refused(tmp_path: Path) -> None:
    times, values = recording(100)
    path = write_csv(tmp_path / "walk.csv", ("a", "b"), times, values)
    with opened(tmp_path / "state") as store:
        ingest_file(path, "csv", small_spec(), store, "ada")
        path.write_bytes(path.read_bytes()[:-40] + b"1" * 60 + b"\n")
        assert refused(path, store).code == "source-changed"


def test_forms_are_told_by_name() -> None:
    assert form_of(Path("A.CSV")) == "csv"
    assert form_of(Path("a.jsonl")) == "jsonl"
    with pytest.raises(InputError, match="known endings"):
        form_of(Path("a.bin"))


@pytest.mark.bench
def test_the_intake_is_fifty_times_faster_than_real_time(tmp_path: Path) -> None:
    assert measure(tmp_path, "csv") > 50
    assert measure(tmp_path, "jsonl") > 50

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fleet.supervise.output import LINE_BYTES, BoundedLog, Lines, Tail

NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_however_bytes_are_cut_the_lines_are_the_same(chunks: list[bytes]) -> None:
    whole, cut = Lines(), Lines()
    together = whole.take(b"".join(chunks)) + whole.rest()
    apart = [line for chunk in chunks for line in cut.take(chunk)] + cut.rest()
    assert together == apart


def test_a_line_without_end_is_cut() -> None:
    lines = Lines()
    parts = lines.take(b"x" * (2 * LINE_BYTES + 5)) + lines.take(b"y\n") + lines.rest()
    assert [len(part) for part in parts] == [LINE_BYTES, LINE_BYTES, 6]


def test_the_tail_is_bounded_and_newest_first() -> None:
    tail = Tail()
    for number in range(100):
        tail.add(str(number))
    assert tail.newest_first()[:2] == ["99", "98"]
    assert len(tail.newest_first()) == 40
    tail.clear()
    assert tail.newest_first() == []


def test_a_log_and_its_older_half_stay_within_the_cap(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log" / "agent.log", 1000)
    for number in range(100):
        log.write(NOW, f"line {number}")
        sizes = [path.stat().st_size for path in (tmp_path / "log").iterdir()]
        assert sum(sizes) <= 1000
    log.close()
    text = log.older.read_text() + log.path.read_text()
    assert text.splitlines()[-1] == "2026-11-21T00:00:00.000+00:00 line 99"
    assert "line 90\n" in text


def test_a_log_goes_on_after_a_restart_also_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("x" * 800)
    for line in ("one", "two"):
        log = BoundedLog(path, 1000)
        log.write(NOW, line)
        log.close()
    assert [line[-3:] for line in path.read_text().splitlines()] == ["one", "two"]


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = BoundedLog(tmp_path / "file" / "agent.log", 1000)
    log.write(NOW, "lost")
    log.close()

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import UnavailableError
from fleet.measure import resident

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="resident memory is read from Linux's /proc"
)


@linux
def test_the_peak_counts_what_was_freed_again_and_starts_anew() -> None:
    size = 64 << 20
    before = resident.reset_peak()
    # Mapped by hand: the allocator may hand out a freed block that is resident already.
    with mmap.mmap(-1, size) as block:
        np.frombuffer(block, dtype=np.uint8)[:] = 1
    assert resident.peak_bytes() - before == pytest.approx(size, rel=0.1)
    again = resident.reset_peak()
    assert resident.peak_bytes() - again < size // 4


@linux
def test_a_locked_counter_is_an_error_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resident, "_CLEAR", tmp_path)  # a folder cannot be written to
    with pytest.raises(UnavailableError, match="may not reset") as caught:
        resident.reset_peak()
    assert "--resident" in caught.value.hint


def test_a_kernel_without_the_counters_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "absent")
    for measure in (resident.require_linux, resident.reset_peak, resident.peak_bytes):
        with pytest.raises(UnavailableError, match="does not have here"):
            measure()

"""The service as Flower starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.errors import InputError, StorageError
from server.standing.start import serve
from tests.server.standing.standing import Fleet


def test_it_opens_the_registry_serves_and_closes_it(
    quick: Fleet, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([False, True])
    serve(quick.grid, str(file), stopping=lambda: next(looks))
    assert quick.registry.observations.heartbeat() is not None
    said = capsys.readouterr().out.splitlines()
    assert '"event": "service.started"' in said[0]
    # Nodes of this grid have no keys, and the real service talks to nobody without one.
    assert quick.devices.asked == []
    assert '"event": "service.stopped"' in said[-1]


def test_a_key_that_cannot_sign_is_refused_before_anything_is_served(
    quick: Fleet, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(StorageError) as missing:
        serve(quick.grid, str(file), str(tmp_path / "none.pem"))
    assert missing.value.code == "unreadable"
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(InputError) as bad:
        serve(quick.grid, str(file), str(tmp_path / "bad.pem"))
    assert bad.value.code == "release-key"
    assert quick.registry.observations.heartbeat() is None

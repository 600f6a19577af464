"""Whose the served release is: what was there before a key was pinned goes on being served."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from clients.agent.cli.root import run
from clients.agent.config import DeviceConfig, save_config
from clients.agent.doctor.finding import Result, Subject
from clients.agent.doctor.releases import check_release_key
from clients.agent.pinned import pin
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.serve import Serving
from clients.agent.serving.signer import served_unsigned
from fleet.federate.releases import Release, first_release
from fleet.federate.signing import make_key, public_keys, public_of
from tests.clients.agent.serving.factories import layout_of, make_base, promoted

KEY = "3f0c1b7a92d4e865"


def signed(release: Release, serving: Serving) -> None:
    kept = serving._take(replace(KeptRelease.of_release(release), signed_by=KEY))
    assert kept.signed_by == KEY


def test_a_release_from_before_the_key_is_served_unsigned_until_its_signature_comes(
    state: Path, releases: list[Release]
) -> None:
    promoted(state, releases[2])
    assert served_unsigned(state, [KEY]) == 2
    assert served_unsigned(state, []) is None
    signed(releases[2], Serving(state))
    assert served_unsigned(state, [KEY, "another"]) is None
    assert served_unsigned(state, ["another"]) == 2


def test_the_base_needs_no_signature_and_what_cannot_be_read_is_anothers_to_tell(
    state: Path, releases: list[Release], tmp_path: Path
) -> None:
    assert served_unsigned(state, [KEY]) is None
    assert served_unsigned(tmp_path / "none", [KEY]) is None
    kept = promoted(state, releases[1])
    Serving(state).folder.release_file(kept.name).write_bytes(b"cut off")
    assert served_unsigned(state, [KEY]) is None


def test_doctor_and_status_say_that_what_is_served_is_of_none_of_the_pinned_keys(
    state: Path, releases: list[Release], capsys: pytest.CaptureFixture[str]
) -> None:
    config = DeviceConfig(name="kitchen-1")
    save_config(config, state)
    subject = Subject(state, pin(public_keys(public_of(make_key())), config, state), sys.executable)
    assert check_release_key(subject).result is Result.ok
    promoted(state, releases[1])
    found = check_release_key(subject)
    assert found.result is Result.warn
    assert "release 1, which is served, was signed by none of them" in found.detail
    assert "fleet-device release list" in found.fix
    assert run(["status", "--state", str(state)]) == 0
    assert "release 1, which is served, was signed by none" in capsys.readouterr().out


def test_another_base_unmoved_needs_a_signature_all_the_same(state: Path) -> None:
    other = make_base(seed=1)
    kept = KeptRelease.of_release(first_release(other, "core", layout_of(other)))
    serving = Serving(state)
    serving.held.bases.try_on(other)
    assert serving.promote(serving._take(kept)).swapped
    assert served_unsigned(state, [KEY]) == 0

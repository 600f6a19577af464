from __future__ import annotations

import os
import stat
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from clients.agent.config import PRIVATE_KEY, PUBLIC_KEY, DeviceConfig
from clients.agent.doctor import keys
from clients.agent.doctor.finding import Result, Subject
from clients.agent.doctor.keys import check_certificate, check_key
from clients.agent.keys import make_keys
from fleet.errors import InputError
from tests.clients.agent.doctor.authority import Authority


def test_a_new_pair_is_what_a_supernode_reads(tmp_path: Path) -> None:
    line = make_keys(tmp_path, "kitchen-1")
    private = serialization.load_ssh_private_key((tmp_path / PRIVATE_KEY).read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / PUBLIC_KEY).read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert line.endswith(" kitchen-1")
    assert stat.S_IMODE((tmp_path / PRIVATE_KEY).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE_KEY, PUBLIC_KEY]


def test_a_pair_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    make_keys(tmp_path, "a")
    before = (tmp_path / PRIVATE_KEY).read_bytes()
    with pytest.raises(InputError, match="knows the device by it"):
        make_keys(tmp_path, "a")
    assert (tmp_path / PRIVATE_KEY).read_bytes() == before


def test_a_good_key_is_fine(subject: Subject) -> None:
    finding = check_key(subject)
    assert finding.result is Result.ok, finding
    assert "ECDSA P-384, permissions 0600" in finding.detail


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_key_that_others_may_read_fails_with_the_command_that_mends_it(
    subject: Subject, mode: int
) -> None:
    path = subject.state / PRIVATE_KEY
    path.chmod(mode)
    finding = check_key(subject)
    assert (finding.result, finding.fix) == (Result.fail, f"chmod 600 {path}")


def test_a_state_directory_that_others_may_read_is_a_warning(subject: Subject) -> None:
    subject.state.chmod(0o755)
    finding = check_key(subject)
    assert (finding.result, finding.fix) == (Result.warn, f"chmod 700 {subject.state}")


def test_a_key_of_somebody_else_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert "belongs to user" in check_key(subject).detail


def test_no_key_a_wrong_key_and_no_plain_file_fail(subject: Subject) -> None:
    path = subject.state / PRIVATE_KEY
    openssh = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    wrong = [
        b"nonsense",
        ed25519.Ed25519PrivateKey.generate().private_bytes(*openssh),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(*openssh),
    ]
    for content in wrong:
        path.write_bytes(content)
        assert check_key(subject).result is Result.fail
    path.unlink()
    assert "there is no key" in check_key(subject).detail
    path.mkdir(mode=0o700)
    assert "not a plain file" in check_key(subject).detail


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"ecdsa-sha2-nistp384 AAAA a"])
def test_a_public_key_of_another_pair_fails(subject: Subject, content: bytes | None) -> None:
    path = subject.state / PUBLIC_KEY
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    finding = check_key(subject)
    assert finding.result is Result.fail
    assert "ssh-keygen -y" in finding.fix


def test_without_cryptography_the_permissions_are_still_checked(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys.importlib.util, "find_spec", lambda name: None)
    assert check_key(subject).result is Result.warn
    assert check_certificate(subject).result is Result.skip
    (subject.state / PRIVATE_KEY).chmod(0o644)
    assert check_key(subject).result is Result.fail


def test_a_root_that_lasts_is_fine(subject: Subject) -> None:
    finding = check_certificate(subject)
    assert finding.result is Result.ok, finding


@pytest.mark.parametrize(
    ("days", "result", "told"),
    [(0, Result.ok, "valid until"), (350, Result.warn, "expires"), (366, Result.fail, "expired")],
)
def test_a_root_is_judged_by_its_end(
    subject: Subject, days: int, result: Result, told: str
) -> None:
    now = datetime.now(timezone.utc) + timedelta(days=days)
    finding = check_certificate(subject, lambda: now)
    assert finding.result is result
    assert told in finding.detail


def test_a_root_of_the_future_points_at_the_clock(subject: Subject) -> None:
    finding = check_certificate(subject, lambda: datetime(2020, 1, 1, tzinfo=timezone.utc))
    assert finding.result is Result.fail
    assert "clock" in finding.fix


def test_a_certificate_that_may_not_sign_is_no_root(subject: Subject) -> None:
    (subject.state / "ca.crt").write_bytes(Authority(is_ca=False).pem())
    assert "no certificate authority" in check_certificate(subject).detail


def test_a_file_that_is_no_certificate_fails(subject: Subject) -> None:
    (subject.state / "ca.crt").write_text("hello")
    assert check_certificate(subject).result is Result.fail


def test_a_missing_root_fails_once_there_is_a_server(subject: Subject) -> None:
    (subject.state / "ca.crt").unlink()
    assert check_certificate(subject).result is Result.warn
    named = replace(subject, config=DeviceConfig(name="a", server="h:1"))
    assert check_certificate(named).result is Result.fail
    assert check_certificate(replace(subject, config=None)).result is Result.skip

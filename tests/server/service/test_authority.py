from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fleet.errors import InputError
from server.service.authority import (
    RENEW_DAYS,
    SERVER_DAYS,
    expiry_of,
    is_due,
    make_authority,
    names_of,
    sign_server,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
NAMES = ("fleet.example", "192.0.2.7", "2001:db8::7")
AUTHORITY = make_authority(NOW)
SERVER = sign_server(AUTHORITY, NAMES, NOW)


def openssl(*words: object) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def files(folder: Path) -> tuple[Path, Path]:
    root, leaf = folder / "ca.crt", folder / "server.crt"
    root.write_bytes(AUTHORITY.certificate)
    leaf.write_bytes(SERVER.certificate)
    return root, leaf


def test_openssl_verifies_the_chain_strictly_for_every_name(tmp_path: Path) -> None:
    root, leaf = files(tmp_path)
    verify = ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", root]
    assert openssl(*verify, "-verify_hostname", "fleet.example", leaf).endswith(": OK\n")
    assert openssl(*verify, "-verify_ip", "2001:db8::7", leaf).endswith(": OK\n")
    assert "mismatch" in openssl(*verify, "-verify_hostname", "other.example", leaf)


def test_openssl_reads_what_was_meant(tmp_path: Path) -> None:
    root, leaf = files(tmp_path)
    told = openssl("x509", "-in", leaf, "-noout", "-text")
    for part in (
        "prime256v1",
        "ecdsa-with-SHA256",
        "CA:FALSE",
        "TLS Web Server Authentication",
        "DNS:localhost, IP Address:127.0.0.1, DNS:fleet.example, IP Address:192.0.2.7",
    ):
        assert part in told
    told = openssl("x509", "-in", root, "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in told
    assert "Certificate Sign, CRL Sign" in told


def test_a_server_cannot_sign_and_another_authority_is_not_trusted(tmp_path: Path) -> None:
    root, leaf = files(tmp_path)
    root.write_bytes(make_authority(NOW).certificate)
    assert "OK" not in openssl("verify", "-CAfile", root, leaf)


def test_certificate_and_key_make_a_tls_server(tmp_path: Path) -> None:
    _, leaf = files(tmp_path)
    (tmp_path / "key").write_bytes(SERVER.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(leaf, tmp_path / "key")
    (tmp_path / "key").write_bytes(AUTHORITY.key)
    with pytest.raises(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(leaf, tmp_path / "key")


def test_a_certificate_is_due_near_its_end_or_without_a_name() -> None:
    assert expiry_of(SERVER.certificate) == NOW + timedelta(days=SERVER_DAYS)
    assert names_of(SERVER.certificate) == (
        *("localhost", "fleet.example"),
        *("127.0.0.1", "192.0.2.7", "2001:db8::7"),
    )
    assert names_of(AUTHORITY.certificate) == ()
    assert not is_due(SERVER.certificate, NAMES, NOW)
    assert is_due(SERVER.certificate, [*NAMES, "new.example"], NOW)
    last = NOW + timedelta(days=SERVER_DAYS - RENEW_DAYS)
    assert not is_due(SERVER.certificate, NAMES, last)
    assert is_due(SERVER.certificate, NAMES, last + timedelta(seconds=1))


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-a", "a-", "x" * 64, "a." * 130 + "a", "ä.example", "a/b", "*"]
)
def test_what_can_be_no_host_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="neither a host name nor an address"):
        sign_server(AUTHORITY, [name], NOW)


def test_what_is_no_certificate_is_told() -> None:
    with pytest.raises(InputError, match="no PEM certificate"):
        expiry_of(b"-----BEGIN")


def test_a_pair_never_shows_its_key() -> None:
    assert "BEGIN" not in repr(SERVER)

"""Certificates of operators: a name and a role, signed by the server's authority."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.errors import InputError
from server.control.errors import AccessError
from server.control.roles import Role
from server.service.authority import Pair

__all__ = ["OPERATOR_DAYS", "ROLE_URI", "Identity", "identity_of", "issue", "serial_of"]

# Whoever lost theirs without a word keeps it no longer than this.
OPERATOR_DAYS = 90
ROLE_URI = "corefleet:role/"
# Clocks of operators may be behind ours.
BEFORE = timedelta(days=1)
NAME_LENGTH = 64


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Args:
        name: As the audit names them.
        role: What they may do.
        serial: Of the certificate by which they came, hexadecimal.
    """

    name: str
    role: Role
    serial: str


def issue(authority: Pair, name: str, role: Role, now: datetime, days: int = OPERATOR_DAYS) -> Pair:
    """Make a key for an operator and sign its certificate.

    Args:
        authority: The server's, see ``server.service.authority``.
        name: As the audit will name them; 1 to 64 printable characters.
        role: What they may do.
        now: The time, with its zone.
        days: How long it is good for.

    Raises:
        InputError: ``operator-name``.
    """
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise InputError(
            "operator-name",
            f"an operator's name has 1 to {NAME_LENGTH} printable characters, not {name!r}",
            "",
        )
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signing = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    uri = x509.UniformResourceIdentifier(f"{ROLE_URI}{role.value}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
        .sign(signing, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    private = key.private_bytes(
        form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(form), private)


def identity_of(certificate: bytes, now: datetime) -> Identity:
    """Read who a certificate (PEM) is for; that it is signed is TLS's to check.

    Args:
        certificate: PEM.
        now: The time, with its zone; a connection may outlive its certificate.

    Raises:
        AccessError: ``no-role`` for one that is no operator's, ``certificate-expired``.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        other = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = other.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound):
        names, uris = [], []
    roles = [uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI)]
    known = {role.value: role for role in Role}
    if len(names) != 1 or len(roles) != 1 or roles[0] not in known:
        raise AccessError(
            "no-role",
            "that certificate is no operator's: it names no role that is known",
            "Ask the server's admin for one.",
        )
    name = str(names[0].value)
    if now > found.not_valid_after_utc:
        raise AccessError(
            "certificate-expired",
            f"the certificate of {name} expired at {found.not_valid_after_utc:%Y-%m-%d}",
            "Ask the server's admin for a new one.",
        )
    return Identity(name, known[roles[0]], serial_of(found))


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number of a certificate, 40 hexadecimal digits."""
    return f"{certificate.serial_number:040x}"

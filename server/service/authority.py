"""A development authority: it signs the certificate of one server, for the names it is reached by.

Devices trust the authority's certificate, which they get once, so a server's certificate can be
renewed without touching a device. For production bring certificates of your own, see
``docs/operate.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.errors import InputError

__all__ = [
    "AUTHORITY_DAYS",
    "LOOPBACK",
    "RENEW_DAYS",
    "SERVER_DAYS",
    "Pair",
    "expiry_of",
    "is_due",
    "make_authority",
    "names_of",
    "sign_server",
]

AUTHORITY_DAYS = 3650
# The longest that common clients accept.
SERVER_DAYS = 825
RENEW_DAYS = 30
# Clocks of devices may be behind ours.
BEFORE = timedelta(days=1)
# The SuperLink and its neighbours speak over loopback with the same certificate.
LOOPBACK = ("localhost", "127.0.0.1")
NAME_LENGTH = 253


@dataclass(frozen=True, repr=False)
class Pair:
    """A certificate and its private key.

    Args:
        certificate: PEM.
        key: PEM, PKCS #8, without a password.
    """

    certificate: bytes
    key: bytes


def make_authority(now: datetime) -> Pair:
    """Make an authority that may sign servers, and nothing below them.

    Args:
        now: The time, with its zone.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("corefleet development authority")
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _begun(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identity, critical=False)
        .add_extension(_issuer(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def sign_server(authority: Pair, names: Sequence[str], now: datetime) -> Pair:
    """Make a key for a server and sign its certificate.

    Args:
        authority: What :func:`make_authority` made.
        names: Host names and addresses besides :data:`LOOPBACK`.
        now: The time, with its zone.

    Raises:
        InputError: ``host-name`` for one that can be none.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signing = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_general_name(name) for name in dict.fromkeys([*LOOPBACK, *names])]
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _begun(_name("corefleet server"), issuer.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(identity, critical=False)
        .add_extension(_issuer(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    return _pair(certificate, key)


def expiry_of(certificate: bytes) -> datetime:
    """Return when a certificate (PEM) expires, UTC.

    Raises:
        InputError: ``certificate-damaged``.
    """
    return _loaded(certificate).not_valid_after_utc


def names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the names and addresses that a certificate (PEM) is for.

    Raises:
        InputError: ``certificate-damaged``.
    """
    try:
        found = _loaded(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    hosts = found.value.get_values_for_type(x509.DNSName)
    addresses = found.value.get_values_for_type(x509.IPAddress)
    return (*hosts, *map(str, addresses))


def is_due(certificate: bytes, names: Sequence[str], now: datetime) -> bool:
    """Tell whether a certificate (PEM) is to be renewed: it expires soon, or lacks a name."""
    lacking = set(names) - set(names_of(certificate))
    return bool(lacking) or expiry_of(certificate) - now < timedelta(days=RENEW_DAYS)


def _loaded(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise InputError(
            "certificate-damaged",
            "the certificate is no PEM certificate",
            "Make a new one: fleet server init --renew",
        ) from error


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    labels = name.rstrip(".").split(".")
    sound = all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "").isalnum()
        and label[0] != "-" != label[-1]
        for label in labels
    )
    if not sound or len(name) > NAME_LENGTH:
        raise InputError(
            "host-name",
            f"{name!r} is neither a host name nor an address",
            "Give the name by which devices reach this machine, e.g. --host fleet.example.",
        )
    return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )

"""The check of the enrolment: does the server know this device's key?

An activation is asked for that Flower cannot grant to anybody, as it names no interval between
signs of life: a key that the server knows is refused for the interval, any other one before that.
So nothing changes, neither here nor there, also while the SuperNode is online with the same key.
"""

from __future__ import annotations

import importlib.util
import json
import ssl
from base64 import b64encode
from datetime import datetime, timezone
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from clients.agent.config import PRIVATE_KEY
from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped
from clients.agent.refused import NOT_KNOWN, REFUSED_CODE

__all__ = ["CONNECT_LIMIT_S", "check_enrolled"]

CONNECT_LIMIT_S = 8.0
ANSWER_BYTES = 8192
ACTIVATE = "/v1/fleet/activate-node"
# Flower 1.41: ``ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL``.
INTERVAL_CODE = 2003
# Field 1 of Flower's ``ActivateNodeRequest``, bytes; field 2, the interval, is left out and so 0.
PUBLIC_KEY_FIELD = b"\x0a"
SEE_SERVER = "See what the check `server` says."
ENROLL = (
    "Never enrolled: fleet-device enroll --state {state} prints the operator's commands. Revoked:"
    " move {key} and {key}.pub aside, fleet-device init --state {state}, have the new key enrolled"
    " under the same name, and restart fleet-device run, or its service."
)
CLOCK = (
    "A signature holds from 5 s ahead of the server's clock to 305 s behind: set the device's clock"
)


def check_enrolled(subject: Subject, limit_s: float = CONNECT_LIMIT_S) -> Finding:
    """The server knows the device's key, and has not revoked it."""
    config, path = subject.config, subject.state / PRIVATE_KEY
    address = config.host_and_port() if config is not None else None
    if config is None or address is None:
        return skipped("no server is configured, which could know the key")
    root = config.certificate_path(subject.state)
    if not (root.is_file() and path.is_file()):
        return skipped("without the key and the root certificate nothing is asked")
    if importlib.util.find_spec("cryptography") is None:
        return skipped("not asked, cryptography is not installed", "See what the check `key` says.")
    try:
        headers, body = _question(path)
    except (ValueError, TypeError, OSError) as error:
        return skipped(f"not asked, {path} cannot be read: {error}", "See the check `key`.")
    try:
        status, answer = _asked(*address, str(root), headers, body, limit_s)
    except (OSError, HTTPException) as error:
        return skipped(f"the server gives no answer: {error}", SEE_SERVER)
    return _judged(subject, status, answer)


def _question(path: Path) -> tuple[dict[str, str], bytes]:
    """Return headers and body, signed as Flower's SuperNode signs its own."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from clients.agent.keys import read_private_key

    try:
        key = read_private_key(path)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is no key of a curve")
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = datetime.now(timezone.utc).isoformat()
    headers = {
        "content-type": "application/protobuf",
        "flwr-public-key": b64encode(public).decode("ascii"),
        "flwr-timestamp": signed,
        "flwr-signature": b64encode(
            key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        ).decode("ascii"),
        "connection": "close",
    }
    return headers, PUBLIC_KEY_FIELD + _varint(len(public)) + public


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _asked(
    host: str, port: int, root: str, headers: dict[str, str], body: bytes, limit_s: float
) -> tuple[int, dict[str, Any]]:
    """Return the status, and the answer where it is a JSON object, else an empty one."""
    context = ssl.create_default_context(cafile=root)
    connection = HTTPSConnection(host, port, timeout=limit_s, context=context)
    try:
        connection.request("POST", ACTIVATE, body, headers)
        response = connection.getresponse()
        content = response.read(ANSWER_BYTES)
    finally:
        connection.close()
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return response.status, found if isinstance(found, dict) else {}


def _judged(subject: Subject, status: int, answer: dict[str, Any]) -> Finding:
    code = answer.get("code")
    if code == INTERVAL_CODE:
        return fine("the server knows this device's key")
    if code == REFUSED_CODE:
        fix = ENROLL.format(state=subject.state, key=subject.state / PRIVATE_KEY)
        return failed(NOT_KNOWN, fix)
    if status == 401:
        return failed("the server does not take this device's signature", CLOCK)
    return skipped(
        f"the server does not tell: HTTP status {status}, code {code or 'none'}", SEE_SERVER
    )

"""What both ends of the link tell gRPC; no gRPC is imported here."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from clients.link.records import LARGEST_MESSAGE_BYTES

__all__ = [
    "ANSWER",
    "CHANNEL_OPTIONS",
    "CONNECT_S",
    "PING",
    "SERVER_OPTIONS",
    "SERVICE",
    "TAKEN",
    "address_of",
]

SERVICE = "corefleet.agent.v1.Agent"
ANSWER, PING = f"/{SERVICE}/Answer", f"/{SERVICE}/Ping"
# The agent sends this at once when it has taken a message, so that a caller can tell an agent
# that is working from one that hangs, and one that was lost at work from one that was never there.
TAKEN = "link-taken"
# A stopped process still accepts connections; one that says nothing for so long is not there.
CONNECT_S = 5.0

_SIZES = [
    # Room for what gRPC puts around a message, so that it is we who refuse one too large.
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES + 1024),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES + 1024),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_SIZES,
    ("grpc.enable_http_proxy", 0),
    # Retries are ours: gRPC's own would hide how long an agent has been away.
    ("grpc.enable_retries", 0),
    # Channels to one address otherwise share their back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name the least time that a connection may take.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1000)),
]
SERVER_OPTIONS: list[tuple[str, int]] = [*_SIZES, ("grpc.so_reuseport", 0)]


def address_of(socket: Path) -> str:
    """Return a socket's address as gRPC reads it, whatever characters the path has."""
    # With two slashes after the colon gRPC would count them as part of the path.
    return f"unix:{quote(bytes(socket.absolute()))}"

"""What both ends of the control API tell gRPC; no gRPC is imported here."""

from __future__ import annotations

__all__ = [
    "CHANNEL_OPTIONS",
    "ERROR",
    "LARGEST_ANSWER_BYTES",
    "LARGEST_REQUEST_BYTES",
    "LARGEST_UPLOAD_BYTES",
    "SERVER_OPTIONS",
    "SERVICE",
    "largest_request",
    "path_of",
]

SERVICE = "corefleet.control.v1.Control"
# Trailing metadata with the error envelope that a command would print.
ERROR = "corefleet-error-bin"
LARGEST_REQUEST_BYTES = 128 * 2**10
# One that brings a file: a base, and what is around it.
LARGEST_UPLOAD_BYTES = 16 * 2**20 + 2**10
UPLOADS = frozenset({"BaseInstall"})
# A release of a large model, or the list of a large fleet.
LARGEST_ANSWER_BYTES = 64 * 2**20
# gRPC's own frames around a message.
ROOM = 1024

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", LARGEST_UPLOAD_BYTES + ROOM),
    ("grpc.max_send_message_length", LARGEST_ANSWER_BYTES + ROOM),
    ("grpc.so_reuseport", 0),
    # Whoever opens a connection and says nothing is not kept.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # One caller's streams; the rest of the bound is the server's own.
    ("grpc.max_concurrent_streams", 64),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", LARGEST_UPLOAD_BYTES + ROOM),
    ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES + ROOM),
    ("grpc.enable_http_proxy", 0),
    # Retries are ours: only what has an idempotency key, or changes nothing, may be repeated.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def largest_request(verb: str) -> int:
    """Return how many bytes a verb's request may have."""
    return LARGEST_UPLOAD_BYTES if verb in UPLOADS else LARGEST_REQUEST_BYTES


def path_of(verb: str) -> str:
    """Return a verb's method as gRPC names it."""
    return f"/{SERVICE}/{verb}"

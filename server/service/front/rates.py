"""How often one address may ask, and how much: token buckets, boundedly many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

__all__ = ["ADDRESSES", "Rates", "neighbourhood"]

# The bucket of the address that was silent longest goes first, and it is full again by then.
ADDRESSES = 16_384
# Whoever has one IPv6 address has its whole network.
PREFIX = 64


class Rates:
    """A bucket per key: ``burst`` tokens at first, ``per_s`` more each second.

    Args:
        per_s: Tokens per second.
        burst: Most tokens of a bucket.
        clock: Monotonic time, seconds.
        most: Most buckets.
    """

    def __init__(
        self, per_s: float, burst: float, clock: Callable[[], float], most: int = ADDRESSES
    ) -> None:
        self._per_s, self._burst, self._clock, self._most = per_s, burst, clock, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, count: int = 1) -> bool:
        """Take tokens; return whether there were so many. If not, none is taken."""
        now_s = self._clock()
        tokens, since_s = self._buckets.pop(key, (float(self._burst), now_s))
        tokens = min(self._burst, tokens + (now_s - since_s) * self._per_s)
        taken = tokens >= count
        self._buckets[key] = (tokens - count * taken, now_s)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return taken

    def __len__(self) -> int:
        return len(self._buckets)


def neighbourhood(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_network((found, PREFIX), strict=False))

"""Tells public addresses from private ones, so that a feed can't send us to a machine inside the network."""

from __future__ import annotations

import ipaddress
import socket

__all__ = ["is_private"]


def is_private(host: str, port: int) -> bool:
    """Whether any address of the host is not on the public internet: private, loopback, link-local, or reserved.

    A host that has no address counts as public: connecting to it fails by itself.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not _is_public(str(address[0])) for *_, address in found)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast

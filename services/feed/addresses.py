"""Keeps a feed from sending us to a machine inside the network: every connection is checked before it is used."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import Any

import httpx

__all__ = ["ConnectionGuard", "PrivateAddress", "is_public"]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PrivateAddress(Exception):
    """A redirect led to an address that is not on the public internet; nothing was asked there."""


class ConnectionGuard:
    """Lets redirects reach public addresses only, and the place that the operator named.

    `trace` belongs into the extension `trace` of every request of one download (httpx calls it at every step of a
    connection, before anything is sent through it): what is checked is the address that the connection has, whatever a name
    meant when it was looked up before. The first connection is the operator's choice. A later one may go to a private
    address only if that is the first one's, under the same name, and its port is the same or a default one, as when an
    intranet's http leads to https. Through a proxy only the proxy knows the address of a name: it decides.
    """

    def __init__(self, url: httpx.URL) -> None:
        self._home = self._now = _place(url)
        self._redirected = False
        self._asked = ""
        self._first: str | None = None

    def next(self, url: httpx.URL) -> None:
        """Says where the following request goes. Raises PrivateAddress when the address itself stands there."""
        self._now, self._redirected = _place(url), True
        with suppress(ValueError):
            self._check(str(ipaddress.ip_address(url.host)))

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Checks a connection as soon as it stands. Raises PrivateAddress."""
        if event == "connection.connect_tcp.started":
            self._asked = _text(info.get("host"))
        if event != "connection.connect_tcp.complete":
            return
        if self._asked.lower() != self._now[0]:
            return  # a proxy's
        stream = info["return_value"]
        address = str(stream.get_extra_info("server_addr")[0])
        if not self._redirected:
            self._first = address
            return
        try:
            self._check(address)
        except PrivateAddress:
            stream.close()
            raise

    def _check(self, address: str) -> None:
        if not is_public(address) and not self._is_home(address):
            raise PrivateAddress(self._now[0])

    def _is_home(self, address: str) -> bool:
        (host, port), (home, home_port) = self._now, self._home
        same_port = port == home_port or {port, home_port} <= set(_DEFAULT_PORTS.values())
        return (host, address) == (home, self._first) and same_port


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1] or _behind_nat64(ip) or ip
    return ip.is_global and not ip.is_multicast


def _behind_nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None


def _place(url: httpx.URL) -> tuple[str, int]:
    """Host, as it is asked for (an international name in its ASCII form), and port."""
    return url.raw_host.decode("ascii").lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0)


def _text(host: object) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)

"""Where the service may listen: beyond loopback only with API keys, or when told so."""

from __future__ import annotations

import ipaddress
import socket

from services.errors import PortInUse, SettingsError
from services.port_holder import holder_of_port
from services.settings import ServeSettings

__all__ = ["is_loopback", "refuse_taken_port", "require_auth_beyond_loopback"]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or be meant by a name."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_auth_beyond_loopback(serve: ServeSettings) -> None:
    """Raises SettingsError when strangers could ask without a key."""
    if is_loopback(serve.host) or serve.api_keys or serve.allow_anonymous:
        return
    raise SettingsError(
        f"serve.host {serve.host} can be reached from other machines and serve.api_keys is empty: "
        "make a key with `cmt key NAME`, or set serve.allow_anonymous (--allow-anonymous)"
    )


def refuse_taken_port(host: str, port: int) -> None:
    """Raises PortInUse when something listens there: Serve binds with SO_REUSEPORT and would silently share the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"port {port} on {host} can't be used: {error.strerror or error}{holder_of_port(port)}; set serve.port "
                "(--port), or serve.host"
            ) from None

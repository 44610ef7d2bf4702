"""What every Kafka client here shares: security settings, time limits, quiet logs and one-line errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from services.errors import BrokerError, BrokerUnreachable
from services.settings import KafkaSettings

__all__ = ["connect", "translated_errors"]

Client = TypeVar("Client")
_REFUSALS_COUNT_AFTER_S = 2.0
_REFUSALS = (SaslAuthenticationFailedError, AuthorizationError, UnsupportedSaslMechanismError)

# kafka-python logs every refused connection as an error with the host behind it; what matters is raised as one line.
logging.getLogger("kafka").setLevel(logging.CRITICAL)


def connect(make: Callable[..., Client], settings: KafkaSettings, bootstrap: str, **options: Any) -> Client:
    """Builds a kafka-python client that has reached a broker.

    `make` is KafkaConsumer, KafkaProducer or KafkaAdminClient, `options` its further options. Raises
    BrokerUnreachable when no broker answers within `settings.connect_timeout_s`, BrokerError when it refuses us.
    """
    if not bootstrap.strip(", "):
        raise BrokerError("the address of the Kafka broker is empty; set kafka.bootstrap_servers")
    sockets: list[Any] = []

    def open_client(**configs: Any) -> Any:
        net = NetworkSelector(**configs)
        sockets.append(KafkaNetClient(net, _Connections(net, **configs), **configs))
        return sockets[-1]

    try:
        return make(kafka_client=open_client, **_options(settings, bootstrap), **options)
    except (KafkaTimeoutError, KafkaConnectionError):
        _close(sockets)
        refusal = next((one._manager.refusal for one in sockets if one._manager.refusal), None)
        if refusal is not None:
            raise BrokerError(f"Kafka at {bootstrap} can't be used: {_one_line(refusal)}") from None
        raise BrokerUnreachable(
            f"no Kafka broker answers at {bootstrap} (waited {settings.connect_timeout_s:g} s): start it, or set "
            "kafka.bootstrap_servers"
        ) from None
    except (KafkaError, OSError, ValueError) as error:
        _close(sockets)
        raise BrokerError(f"Kafka at {bootstrap} can't be used: {_one_line(error)}") from None


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Turns kafka-python's errors into a BrokerError (BrokerUnreachable after a timeout) that starts with `doing`."""
    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError) as error:
        raise BrokerUnreachable(f"{doing}: no answer from Kafka ({_one_line(error)})") from error
    except (KafkaError, ValueError, TypeError) as error:
        raise BrokerError(f"{doing}: {_one_line(error)}") from error


class _Connections(KafkaConnectionManager):  # type: ignore[misc] # kafka-python has no types
    """Remembers who refused us: the client would try on, and only say that nobody answered.

    A new user is not known to every broker at once, so for a moment it may try on; no longer, as somebody waits for the answer.
    A broker says why and hangs up; where both arrive together kafka-python drops what was said, so here it is read first.
    """

    refusal: BaseException | None = None
    _refused_at_s = 0.0

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        if self.refusal is not None and time.monotonic() > self._refused_at_s + _REFUSALS_COUNT_AFTER_S:
            raise self.refusal
        connection = super().get_connection(*arguments, **options)
        if self.refusal is None and not self.bootstrapped:
            connection.init_future.add_errback(self._note)
        return connection

    async def _build_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = await super()._build_transport(*arguments, **options)
        receive = transport._sock_recv

        def data_before_the_end() -> tuple[bytes, BaseException | None]:
            data, error = receive()
            return data, None if data else error  # the end is met again by the next call

        transport._sock_recv = data_before_the_end
        return transport

    def _note(self, error: BaseException) -> None:
        if isinstance(error, _REFUSALS) and self.refusal is None:
            self.refusal, self._refused_at_s = error, time.monotonic()


def _options(settings: KafkaSettings, bootstrap: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": [address.strip() for address in bootstrap.split(",") if address.strip()],
        "bootstrap_timeout_ms": int(settings.connect_timeout_s * 1000),
        "reconnect_backoff_max_ms": 1000,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
        "ssl_cafile": str(settings.ssl_cafile) if settings.ssl_cafile else None,
        "ssl_certfile": str(settings.ssl_certfile) if settings.ssl_certfile else None,
        "ssl_keyfile": str(settings.ssl_keyfile) if settings.ssl_keyfile else None,
        "ssl_password": settings.ssl_password.get_secret_value() if settings.ssl_password else None,
        "ssl_check_hostname": settings.ssl_check_hostname,
    }
    return {name: value for name, value in options.items() if value is not None}


def _close(sockets: list[Any]) -> None:
    """A client whose constructor failed leaves its IO thread behind."""
    for client in sockets:
        client.close()
        client._net.stop()


def _one_line(error: BaseException) -> str:
    refused = isinstance(error, _REFUSALS)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return f"access refused: {text}" if refused else text

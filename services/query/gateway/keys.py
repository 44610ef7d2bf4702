"""API keys: made once, kept as hashes, each with a rate of its own."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping

from services.errors import Overloaded
from services.query.gateway.errors import ApiError

__all__ = ["KeyRing", "hash_of", "new_key"]

_BURST_S = 10.0  # a key may ask this many seconds' worth of questions at once


def new_key() -> str:
    """A key of 256 random bits: too many to guess, so that a plain hash of it is safe to keep."""
    return f"cmt-{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """Knows the keys by their hashes {name: sha256}, and how fast each may ask. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self, hashes: Mapping[str, str], rate_per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hashes = dict(hashes)
        self._rate_per_s = rate_per_minute / 60
        self._burst = max(1.0, self._rate_per_s * _BURST_S)
        self._clock = clock
        self._left = {name: (self._burst, clock()) for name in hashes}

    def name_of(self, authorization: str) -> str | None:
        """The name of the key in an Authorization header; None when no key is needed. Raises ApiError 401."""
        if not self._hashes:
            return None
        scheme, _, key = authorization.partition(" ")
        given = hash_of(key.strip())
        # every hash is compared, each in constant time: nothing is told by how long a refusal takes
        names = [name for name, known in self._hashes.items() if hmac.compare_digest(given, known)]
        if scheme.lower() != "bearer" or not names:
            detail = "this service needs an API key: send `Authorization: Bearer KEY`"
            wanted = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, detail, type_="authentication_error", code="invalid_api_key", headers=wanted)
        return names[0]

    def spend(self, name: str | None) -> None:
        """Takes one question from a key's bucket. Raises Overloaded when it is empty."""
        if name is None:
            return
        left, at = self._left[name]
        now = self._clock()
        left = min(self._burst, left + (now - at) * self._rate_per_s)
        if left < 1:
            wait_s = math.ceil((1 - left) / self._rate_per_s)
            raise Overloaded(f"API key {name!r} asks more than {self._rate_per_s * 60:g} times a minute", wait_s)
        self._left[name] = (left - 1, now)

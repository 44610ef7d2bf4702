"""Downloads one http or https address within limits of time and size, and only if it has changed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from services.errors import FeedError
from services.feed.addresses import ConnectionGuard, PrivateAddress
from services.feed.deadline import within
from services.feed.packed import unpacked
from services.settings import FeedSettings

__all__ = ["Download", "FeedGone", "Validators", "download", "without_secrets"]

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_RETRY_AFTER_S = 86_400.0
_SENDABLE = re.compile(r"[\x20-\x7e]{1,1000}")
_SECONDS = re.compile(r"\d{1,20}(\.\d{1,20})?", re.ASCII)


class FeedGone(FeedError):
    """The server says that the feed will not come back (410)."""


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server wants to be told next time, so that it sends only what has changed."""

    etag: str = ""
    last_modified: str = ""

    def headers(self) -> dict[str, str]:
        """The headers of a conditional request; what can't be sent back as it came is left out."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if _SENDABLE.fullmatch(value)}


@dataclass(frozen=True, slots=True)
class Download:
    """A body, or None when it has not changed; where it came from in the end, and as what; what to tell the server next
    time."""

    body: bytes | None
    url: str = ""
    content_type: str = ""
    validators: Validators = field(default_factory=Validators)


def download(url: str, settings: FeedSettings, validators: Validators | None = None) -> Download:
    """The body, at most `max_bytes` after decompression, within `timeout_s` seconds in all.

    `validators` are those of the last download. Every failure is a FeedError of one line without the
    password that the address may hold; its `retry_after_s` is what the server asked for, if it did.
    """
    shown = without_secrets(url)
    # httpx limits every single read, so a server that drips header lines could hold us for hours: the deadline for the
    # whole is kept here, and the thread of such a server is left to its fate.
    request = _Request(url, shown, settings, validators or Validators())
    try:
        return within(settings.timeout_s, request.attempt)
    except TimeoutError:
        raise FeedError(request.too_slow()) from None


class _Request:
    def __init__(self, url: str, shown: str, settings: FeedSettings, validators: Validators) -> None:
        self._url, self._shown, self._settings = url, shown, settings
        self._conditions = validators.headers()
        self._headers = {"User-Agent": settings.user_agent, "Accept": _ACCEPT, **self._conditions}
        self._deadline = time.monotonic() + settings.timeout_s

    def attempt(self) -> Download:
        try:
            with httpx.Client(follow_redirects=False, timeout=self._settings.timeout_s) as client:
                return self._follow(client)
        except httpx.TimeoutException:
            raise FeedError(self.too_slow()) from None
        except PrivateAddress as error:
            raise FeedError(
                f"{self._shown}: redirects to {error}, which is not on the public internet; set "
                "feed.allow_private_redirects to follow it"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise FeedError(f"{self._shown}: can't be fetched: {text}") from None

    def too_slow(self) -> str:
        return f"{self._shown}: no complete answer within {self._settings.timeout_s:g} s"

    def _follow(self, client: httpx.Client) -> Download:
        url = httpx.URL(self._url)
        guard = None if self._settings.allow_private_redirects else ConnectionGuard(url)
        extensions = {"trace": guard.trace} if guard else {}
        for _ in range(_MAX_REDIRECTS + 1):
            if url.scheme.lower() not in ("http", "https"):
                raise FeedError(f"{self._shown}: only http and https addresses are fetched")
            with client.stream("GET", url, headers=self._headers, extensions=extensions) as response:
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    return self._read(response)
                url = url.join(response.headers["location"])
                if guard:
                    guard.next(url)
        raise FeedError(f"{self._shown}: more than {_MAX_REDIRECTS} redirects")

    def _read(self, response: httpx.Response) -> Download:
        if response.status_code == httpx.codes.NOT_MODIFIED and self._conditions:
            return Download(None)
        if response.status_code != httpx.codes.OK:
            status = f"{response.status_code} {response.reason_phrase}".rstrip()
            kind = FeedGone if response.status_code == httpx.codes.GONE else FeedError
            error = kind(f"{self._shown}: the server answers {status}")
            error.retry_after_s = _retry_after_s(response.headers)
            raise error
        body = bytearray()
        for part in response.iter_bytes():  # a chunk size would gather parts past the deadline
            body += part
            if len(body) > self._settings.max_bytes:
                raise FeedError(f"{self._shown}: more than {self._settings.max_bytes} bytes")
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("")
        headers = response.headers
        return Download(
            unpacked(bytes(body), self._settings.max_bytes, self._shown),
            without_secrets(str(response.url)),
            headers.get("content-type", ""),
            Validators(headers.get("etag", ""), headers.get("last-modified", "")),
        )


_ACCEPT = "application/rss+xml, application/atom+xml, application/feed+json, application/xml;q=0.9, */*;q=0.8"


def without_secrets(url: str) -> str:
    """An address without user name and password, fit to be shown."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:
        return "the given address"


def _retry_after_s(headers: Any) -> float | None:
    """The seconds for which the server wants to be left alone, a day at most; a date is read by the server's own clock."""
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    until = _date(text)
    if until is None:
        return None
    wait_s = (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds()
    return min(max(wait_s, 0.0), _LONGEST_RETRY_AFTER_S)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None

"""Downloads one http or https address within limits of time and size, and only if it has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from services.errors import FeedError
from services.feed.addresses import is_private
from services.feed.deadline import within
from services.settings import FeedSettings

__all__ = ["Download", "FeedGone", "download", "without_secrets"]

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_RETRY_AFTER_S = 86_400.0


class FeedGone(FeedError):
    """The server says that the feed will not come back (410)."""


@dataclass(frozen=True, slots=True)
class Download:
    """A body, or None when it has not changed, and what the server wants to be told next time."""

    body: bytes | None
    etag: str = ""
    last_modified: str = ""


def download(url: str, settings: FeedSettings, etag: str = "", last_modified: str = "") -> Download:
    """The body, at most `max_bytes` after decompression, within `timeout_s` seconds in all.

    `etag` and `last_modified` are those of the last download. Every failure is a FeedError of one line without the
    password that the address may hold; its `retry_after_s` is what the server asked for, if it did.
    """
    shown = without_secrets(url)
    # httpx limits every single read, so a server that drips header lines could hold us for hours: the deadline for the
    # whole is kept here, and the thread of such a server is left to its fate.
    request = _Request(url, shown, settings, etag, last_modified)
    try:
        return within(settings.timeout_s, request.attempt)
    except TimeoutError:
        raise FeedError(request.too_slow()) from None


class _Request:
    def __init__(self, url: str, shown: str, settings: FeedSettings, etag: str, last_modified: str) -> None:
        self._url, self._shown, self._settings = url, shown, settings
        self._headers = {"User-Agent": settings.user_agent, "Accept": _ACCEPT}
        if etag:
            self._headers["If-None-Match"] = etag
        if last_modified:
            self._headers["If-Modified-Since"] = last_modified
        self._deadline = time.monotonic() + settings.timeout_s

    def attempt(self) -> Download:
        try:
            with httpx.Client(follow_redirects=False, timeout=self._settings.timeout_s) as client:
                return self._follow(client)
        except httpx.TimeoutException:
            raise FeedError(self.too_slow()) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise FeedError(f"{self._shown}: can't be fetched: {text}") from None

    def too_slow(self) -> str:
        return f"{self._shown}: no complete answer within {self._settings.timeout_s:g} s"

    def _follow(self, client: httpx.Client) -> Download:
        url = httpx.URL(self._url)
        for _ in range(_MAX_REDIRECTS + 1):
            if url.scheme.lower() not in ("http", "https"):
                raise FeedError(f"{self._shown}: only http and https addresses are fetched")
            with client.stream("GET", url, headers=self._headers) as response:
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    return self._read(response)
                url = self._redirected(url, response)
        raise FeedError(f"{self._shown}: more than {_MAX_REDIRECTS} redirects")

    def _redirected(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        target = url.join(response.headers["location"])
        port = target.port or (443 if target.scheme == "https" else 80)
        same = (target.host, target.port) == (url.host, url.port)
        if not same and not self._settings.allow_private_redirects and is_private(target.host, port):
            raise FeedError(f"{self._shown}: redirects to {target.host}, which is not on the public internet")
        return target

    def _read(self, response: httpx.Response) -> Download:
        if response.status_code == httpx.codes.NOT_MODIFIED:
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
        return Download(bytes(body), headers.get("etag", ""), headers.get("last-modified", ""))


_ACCEPT = "application/rss+xml, application/atom+xml, application/feed+json, application/xml;q=0.9, */*;q=0.8"


def without_secrets(url: str) -> str:
    """An address without user name and password, fit to be shown."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:
        return "the given address"


def _retry_after_s(headers: Any) -> float | None:
    text = headers.get("retry-after", "")
    return min(float(text), _LONGEST_RETRY_AFTER_S) if text.isdigit() and len(text) < 9 else None

"""Tests an object store before a bank is written to it: an object that exists must not be replaced by a conditional put.

Lance's commits rest on it. A store that ignores the condition lets two writers overwrite each other's versions in silence.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from services.errors import BankUnavailable

__all__ = ["require_conditional_put"]

_CLIENT_OPTIONS = {"allow_http", "allow_invalid_certificates", "connect_timeout", "timeout", "proxy_url", "user_agent"}
_FOLDER = "_selftest"


def require_conditional_put(uri: str, storage_options: Mapping[str, str]) -> None:
    """Raises BankUnavailable when the store at `uri` can't be written, or replaces an object that it was told to create.

    Nothing is done for a local folder, whose file system gives the guarantee, nor where commits go through DynamoDB
    (s3+ddb://).
    """
    if not uri.startswith(("s3://", "gs://", "az://")):
        return
    import obstore  # only those pay for loading it who use an object store
    from obstore.exceptions import AlreadyExistsError, BaseError

    name = f"{_FOLDER}/{uuid.uuid4().hex}"
    try:
        store = _store(uri, storage_options)
        obstore.put(store, name, b"first", mode="create")
        try:
            obstore.put(store, name, b"second", mode="create")
        except AlreadyExistsError:
            return
        finally:
            obstore.delete(store, name)
    except BaseError as error:
        raise BankUnavailable(f"bank {uri} can't be used: {str(error).splitlines()[0][:300]}") from error
    raise BankUnavailable(
        f"bank {uri}: its object store replaces objects that it was told to create (no If-None-Match), so two writers "
        "would overwrite each other: use another store"
    )


def _store(uri: str, storage_options: Mapping[str, str]) -> Any:
    from obstore.store import from_url

    scheme = uri.partition("://")[0]
    prefix = {"s3": "aws_", "gs": "google_", "az": "azure_"}[scheme]
    config: dict[str, Any] = {}
    client: dict[str, Any] = {}
    for name, value in storage_options.items():
        short = name.lower().removeprefix(prefix)
        if short in _CLIENT_OPTIONS:
            client[short] = value.lower() == "true" if value.lower() in ("true", "false") else value
        else:
            config[prefix + short] = value
    return from_url(uri, config=config, client_options=client)

"""The bank's figures for a person, as `cmt bank stats` prints them."""

from __future__ import annotations

from services.bank.location import one_spelling
from services.bank.reader import BankReader
from services.errors import BankUnavailable
from services.settings import BankSettings

__all__ = ["summarise"]


def summarise(settings: BankSettings) -> dict[str, str | int]:
    """Documents, rows, bytes, fragments, version and latest commit. Raises BankUnavailable when there is no bank."""
    options = {name: secret.get_secret_value() for name, secret in settings.storage_options.items()}
    stats = BankReader(settings.uri, None, 0.0, options).stats()
    if stats.version == 0:
        raise BankUnavailable(f"there is no bank at {one_spelling(settings.uri)}: correct bank.uri (--bank)")
    return {
        "bank": settings.uri,
        "documents": stats.documents,
        "rows": stats.rows,
        "bytes": stats.bytes,
        "fragments": stats.fragments,
        "version": stats.version,
        "unindexed_words_rows": stats.unindexed_words_rows,
        "unindexed_keys_rows": stats.unindexed_keys_rows,
        "latest_ingested_at": stats.latest_ingested_at.isoformat() if stats.latest_ingested_at else "never",
    }

"""Tells a document's story from the versions that the bank still has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from services.bank.records import DocumentVersion
from services.query.gateway.responses import Document, DocumentState, VersionInfo

__all__ = ["document_of", "is_live"]


def document_of(doc_id: str, namespace: str, versions: Sequence[DocumentVersion]) -> Document:
    """The document as its newest version stands, with all versions (at least one), newest first."""
    names = [name for name in VersionInfo.model_fields if name != "state"]
    history = [
        VersionInfo(state=_state(version), **{name: getattr(version, name) for name in names}) for version in versions
    ]
    return Document(id=doc_id, namespace=namespace, state=history[0].state, history=history)


def is_live(version: DocumentVersion) -> bool:
    """Whether questions are answered from it now."""
    return _state(version) == "live"


def _state(version: DocumentVersion) -> DocumentState:
    if version.deleted_at is not None:
        return "deleted"
    if version.superseded_at is not None:
        return "superseded"
    expired = version.expires_at is not None and version.expires_at <= datetime.now(UTC)
    return "expired" if expired else "live"

"""The Ray names of ingest's actors, by which they find each other, also after one was started again.

Names travel instead of handles: a handle among an actor's arguments lives in the object store, and when it is lost there
the actor can't be started again.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import ray

from services.bank.location import one_spelling
from services.metrics_hub import HUB_NAMESPACE
from services.settings import Settings

__all__ = ["actor_or_none", "compressor_name", "consumer_name", "coordinator_name", "writer_name"]


def coordinator_name(settings: Settings) -> str:
    """One per topic, group and bank."""
    return f"cmt-coordinator-{_ingest_id(settings)}"


def consumer_name(settings: Settings, number: int) -> str:
    """The prefix before the number is how the coordinator finds all consumers."""
    return f"cmt-consumer-{_ingest_id(settings)}-{number}"


def compressor_name(settings: Settings) -> str:
    """A new name at every call."""
    return f"cmt-compressor-{_ingest_id(settings)}-{uuid.uuid4().hex[:12]}"


def writer_name(settings: Settings) -> str:
    """One per bank, whatever is written into it: a second writer is refused by its name."""
    return f"cmt-bank-writer-{hashlib.sha256(one_spelling(settings.bank.uri).encode()).hexdigest()[:16]}"


def actor_or_none(name: str) -> Any:
    """The actor of this name, None when there is none (any more)."""
    try:
        return ray.get_actor(name, namespace=HUB_NAMESPACE)
    except ValueError:
        return None


def _ingest_id(settings: Settings) -> str:
    identity = f"{settings.kafka.topic}\n{settings.kafka.group_id}\n{one_spelling(settings.bank.uri)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]

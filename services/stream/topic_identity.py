"""Tells a topic from one of the same name that was made later: its offsets begin again at 0."""

from __future__ import annotations

from kafka.admin import KafkaAdminClient

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors

__all__ = ["topic_identity"]

_NO_ID = ("", "00000000-0000-0000-0000-000000000000")


def topic_identity(settings: KafkaSettings, bootstrap: str) -> str:
    """The id that the broker gave `settings.topic` when it was made (Kafka 2.8 and later, and the embedded broker).

    An older broker has none: there it is the cluster's id with the topic's name, and a topic that is deleted and made
    anew can't be told from the old one. Raises BrokerUnreachable, or TopicMissing.
    """
    admin = connect(KafkaAdminClient, settings, bootstrap)
    try:
        with translated_errors(f"topic {settings.topic}"):
            found = [topic for topic in admin.describe_topics([settings.topic]) if topic["name"] == settings.topic]
            if not found or not found[0]["partitions"]:
                raise TopicMissing(f"Kafka topic {settings.topic} does not exist at {bootstrap}")
            topic_id = str(found[0].get("topic_id") or "")
            if topic_id not in _NO_ID:
                return topic_id
            return f"{admin.describe_cluster()['cluster_id']}/{settings.topic}"
    finally:
        admin.close()

"""Makes sure that the document topic with its dead-letter topic exists before anything reads or writes."""

from __future__ import annotations

from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from services.errors import BrokerError, TopicMissing
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors

__all__ = ["ensure_topics", "topic_partitions"]

# A dead letter is a whole record with more headers: its topic must take what the document topic just so took.
_DLQ_MAX_BYTES = 16 * 2**20


def ensure_topics(settings: KafkaSettings, bootstrap: str) -> None:
    """Creates the topic and its dead-letter topic where missing, and waits until both can be used.

    Two processes may do this at once. Raises TopicMissing when a topic is missing and `create_topics` is off,
    BrokerUnreachable when nothing answers, BrokerError when the broker refuses.
    """
    admin = connect(KafkaAdminClient, settings, bootstrap)
    try:
        with translated_errors(f"topic {settings.topic}"):
            missing = [
                name for name, count in _partitions(admin, [settings.topic, settings.dlq_topic]).items() if not count
            ]
            if missing and not settings.create_topics:
                raise TopicMissing(
                    f"Kafka topic {missing[0]} does not exist at {bootstrap}, and kafka.create_topics is off"
                )
            for name in missing:
                _create(admin, name, settings)
            admin.wait_for_topics(missing, timeout_ms=int(settings.connect_timeout_s * 1000))
    finally:
        admin.close()


def topic_partitions(settings: KafkaSettings, bootstrap: str, topic: str) -> int:
    """Number of partitions of a topic, 0 when it does not exist. Raises BrokerUnreachable."""
    admin = connect(KafkaAdminClient, settings, bootstrap)
    try:
        with translated_errors(f"topic {topic}"):
            return _partitions(admin, [topic])[topic]
    finally:
        admin.close()


def _partitions(admin: Any, topics: list[str]) -> dict[str, int]:
    found = {topic["name"]: topic for topic in admin.describe_topics(topics)}
    return {name: len(found[name]["partitions"]) if name in found else 0 for name in topics}


def _create(admin: Any, name: str, settings: KafkaSettings) -> None:
    configs = {"max.message.bytes": str(_DLQ_MAX_BYTES)} if name == settings.dlq_topic else {}
    # -1 leaves the number of replicas to the broker's own default
    wanted = {name: {"num_partitions": settings.partitions, "replication_factor": -1, "configs": configs}}
    try:
        response = admin.create_topics(wanted, raise_errors=False)
    except TopicAlreadyExistsError:
        return
    for topic in response["topics"]:
        error: type[KafkaError] = for_code(topic["error_code"])
        if topic["error_code"] and error is not TopicAlreadyExistsError:
            raise BrokerError(f"Kafka topic {name} can't be created: {topic.get('error_message') or error.__name__}")

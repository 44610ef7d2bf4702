"""The claims of tests/integration/test_stream_kafka.py on Apache Kafka."""

from tests.integration.test_stream_kafka import *  # noqa: F403

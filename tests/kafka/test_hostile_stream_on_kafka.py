"""The claims of tests/integration/test_hostile_stream.py on Apache Kafka."""

from tests.integration.test_hostile_stream import *  # noqa: F403

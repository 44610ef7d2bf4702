"""The claims of tests/integration/test_dead_letters.py on Apache Kafka."""

from tests.integration.test_dead_letters import *  # noqa: F403

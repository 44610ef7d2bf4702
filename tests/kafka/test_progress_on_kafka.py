"""The claims of tests/integration/test_progress.py on Apache Kafka."""

from tests.integration.test_progress import *  # noqa: F403

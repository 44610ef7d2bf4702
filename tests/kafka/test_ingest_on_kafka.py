"""The claims of tests/integration/test_ingest.py on Apache Kafka."""

from tests.integration.test_ingest import *  # noqa: F403

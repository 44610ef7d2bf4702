"""The claims of tests/integration/test_ingest.py on Apache Kafka; they take minutes, and `make test-kafka` alone runs them."""

from tests.faults.test_faults import RECORDS

if RECORDS >= 10_000:
    from tests.integration.test_ingest import *  # noqa: F403

"""The job with which KubeRay empties Redis runs in the program's image: what it calls of Ray is there."""

from __future__ import annotations

import inspect

from ray._private import gcs_utils


def test_ray_takes_what_the_job_that_empties_redis_gives_it() -> None:
    """KubeRay 1.5 and 1.6 make that job of the head's pod, with a line of Python that only they know (`buildRedisCleanupJob`)."""
    given = {"host": "redis", "port": 6379, "password": "", "use_ssl": False, "storage_namespace": "news"}
    taken = inspect.signature(gcs_utils.cleanup_redis_storage)
    taken.bind(**given)
    taken.bind(**given, username="news")

"""Logging of the command line: our own lines at the chosen level, third parties only when something is wrong."""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["set_up_logging"]

_NOISY = ("ray", "ray.serve", "httpx", "httpcore", "transformers", "asyncio", "urllib3", "filelock")


def set_up_logging(level: str) -> None:
    """One line a message on stderr; call once, before anything heavy is imported."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.getLevelName(level), logging.ERROR))
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it logs what it raises, and each refused connection
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ core prints past Python's logging
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about it at every start
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")

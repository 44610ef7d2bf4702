"""Logging of the command line: our own lines at the chosen level, third parties only when something is wrong."""

from __future__ import annotations

import logging
import os
import warnings

from services.terminal import on_one_line, printable

__all__ = ["set_up_logging"]

_NOISY = ("ray", "ray.serve", "httpx", "httpcore", "transformers", "asyncio", "urllib3", "filelock")


class _LineFormatter(logging.Formatter):
    """A message is one line, whatever stands in the data that it quotes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = on_one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up_logging(level: str) -> None:
    """One line a message on stderr; call once, before anything heavy is imported."""
    logging.basicConfig(level=level, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.getLevelName(level), logging.ERROR))
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it logs what it raises, and each refused connection
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ core prints past Python's logging
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about it at every start
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")

"""The error tree of the services.

ServiceError
├── SettingsError        broken file, unknown key, wrong value                      exit 2
├── PortInUse            a port that the service wants is taken                     exit 3
├── BrokerError
│   ├── BrokerUnreachable   no Kafka broker answers                                 exit 4, retriable
│   ├── TopicMissing        the topic does not exist and may not be created         exit 4
│   └── RecordsRefused      records that the broker will never take; others arrived exit 4
├── RecordError          a Kafka record that can't be read; goes to the DLQ
├── FeedError            a feed or file that can't be read; skipped and counted     exit 5
├── BankError
│   ├── BankUnavailable     the bank's location can't be opened or written          exit 6
│   ├── BankFull            no disk space is left for a commit                      exit 6
│   ├── BankFenced          a newer writer has taken the bank over                  exit 6
│   └── BankMismatch        the bank was written by another checkpoint              exit 6
├── WorkerLost           a Ray actor died or is being started again                 retriable
└── Overloaded           the query service's queue is full (HTTP 429)               retriable

The command line prints an error as one line and exits with the class's `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BankError",
    "BankFenced",
    "BankFull",
    "BankMismatch",
    "BankUnavailable",
    "BrokerError",
    "BrokerUnreachable",
    "FeedError",
    "Overloaded",
    "PortInUse",
    "RecordError",
    "RecordsRefused",
    "ServiceError",
    "SettingsError",
    "TopicMissing",
    "WorkerLost",
    "is_panic",
]


class ServiceError(Exception):
    """Base of all errors of `services`; its text is one line fit for a user."""

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class SettingsError(ServiceError):
    """The settings can't be used: broken file, unknown key or wrong value."""

    exit_code = 2


class PortInUse(ServiceError):
    """A TCP port that the service wants is taken."""

    exit_code = 3


class BrokerError(ServiceError):
    """Base of errors between this program and Kafka."""

    exit_code = 4


class BrokerUnreachable(BrokerError):
    """No Kafka broker answers at the configured addresses."""

    retriable = True


class RecordsRefused(BrokerError):
    """Records that the broker will never take, as they are; all others that were sent have arrived. `count` of them."""

    def __init__(self, message: str, count: int = 1) -> None:
        super().__init__(message)
        self.count = count

    def __reduce__(self) -> tuple[type[RecordsRefused], tuple[str, int]]:
        return RecordsRefused, (str(self), self.count)


class TopicMissing(BrokerError):
    """The topic does not exist, and the settings do not allow creating it."""


class RecordError(ServiceError):
    """A Kafka record can't be read as a document; it belongs in the dead-letter topic.

    `reason` is a short label (`not_json`, `schema`, `no_key`, `too_large`, ...) for metrics and headers; the detail is one line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(" ".join(detail.split()) or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        return RecordError, (self.reason, str(self))


class FeedError(ServiceError):
    """A feed or file can't be fetched or read; it is skipped and counted.

    `retry_after_s` is what its server asked for, None when it did not.
    """

    exit_code = 5
    retry_after_s: float | None = None


class BankError(ServiceError):
    """Base of errors of the memory bank."""

    exit_code = 6


class BankUnavailable(BankError):
    """The bank's location can't be opened, created or written."""


class BankFull(BankError):
    """No disk space is left; nothing of the commit was made visible."""


class BankMismatch(BankError):
    """The bank holds memories of another checkpoint, which must never be mixed."""


class BankFenced(BankError):
    """A newer writer has taken the bank over: this one must end."""


class WorkerLost(ServiceError):
    """A Ray actor died, or is being started again; the same call may succeed on another, or a little later."""

    retriable = True


class Overloaded(ServiceError):
    """The query service's queue is full; try again after `retry_after_s` seconds."""

    retriable = True

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float]]:
        return Overloaded, (str(self), self.retry_after_s)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code (Lance, a tokenizer) has panicked, which is no Exception: the call failed, the process is whole."""
    return type(error).__name__ == "PanicException"

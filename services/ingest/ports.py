"""What ingest needs from the model, Kafka and the bank, as Protocols that tests can satisfy too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cmt_core.retrieval.late_interaction import DocumentKeys
from cmt_core.text.windows import Window
from services.bank.records import Chunk, CommitReport, DocumentDelete, DocumentWrite
from services.errors import BrokerError, RecordError
from services.settings import Settings
from services.stream.record import RawRecord

__all__ = [
    "BankRecord",
    "Compress",
    "Compressor",
    "DeadLetterSink",
    "Memory",
    "ModelFactory",
    "RecordSource",
    "Write",
]


class Memory(Protocol):
    """A window's packed memory, and the tokens it holds."""

    @property
    def code(self) -> bytes: ...
    @property
    def n_tokens(self) -> int: ...


class Compressor(Protocol):
    """The compressing side of the model (`cmt_core.model.CMT`)."""

    @property
    def model_id(self) -> str: ...
    @property
    def d_key(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...

    def windows(self, title: str, text: str) -> Sequence[Window]:
        """A document's windows, none for a text without words; several threads ask at once, also during `compress`."""
        ...

    def compress(self, windows: Sequence[Window]) -> Sequence[Memory]:
        """The memories of N windows, in their order."""
        ...

    def document_keys(self, windows: Sequence[Window]) -> DocumentKeys:
        """What N windows are found by."""
        ...


class RecordSource(Protocol):
    """One member of the consumer group (`services.stream.source.KafkaSource`)."""

    def poll(self, timeout_s: float, max_records: int) -> list[RawRecord]:
        """Up to `max_records` records, in offset order within a partition."""
        ...

    def assign(self, partitions: set[int], from_beginning: bool = False) -> None:
        """Reads these partitions from their committed offsets on; those that it reads already go on as they are.

        `from_beginning` reads what is new among them from the earliest record on, whatever is committed.
        """
        ...

    def hold(self, partitions: set[int]) -> None:
        """Stops fetching from these partitions, until a later call leaves them out; `resume` does not."""
        ...

    def pause(self) -> None:
        """Stops fetching; `poll` keeps the membership alive."""
        ...

    def resume(self) -> None:
        """Fetches again where `pause` stopped."""
        ...

    def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commits {partition: NEXT offset}; False when the group has moved on."""
        ...

    def lag(self) -> dict[int, int]:
        """Records between committed and end offset, by assigned partition."""
        ...

    def assigned(self) -> set[int]:
        """The partitions that this member reads now."""
        ...

    def read_up_to(self) -> dict[int, int]:
        """{partition: offset behind all that `poll` gave or left out}, for those that are assigned and were fetched."""
        ...

    def close(self) -> None:
        """Leaves the group."""
        ...


class DeadLetterSink(Protocol):
    """Where unreadable records go (`services.stream.dead_letters.DeadLetters`)."""

    def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
        """Keeps records with their reasons and epochs; for each None when it is safe, or why it is not."""
        ...

    def close(self) -> None:
        """Disconnects."""
        ...


BankRecord = DocumentWrite | DocumentDelete
Compress = Callable[[Sequence[tuple[str, str]]], Sequence[Sequence[Chunk] | RecordError]]
"""(title, text) of documents to the chunks of each, or the reason why there are none."""
Write = Callable[[Sequence[BankRecord]], CommitReport]
"""One bank commit; BankError with nothing visible, ValueError when a record does not fit the bank."""
ModelFactory = Callable[[Settings], Compressor]

"""A seeded stream of creates, updates, deletes, poison and oversized records, with the bank that it must lead to."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.stream.record import NAMESPACE_HEADER, SEQ_HEADER

Document = tuple[str, str]
"""(namespace, id)."""
MAX_RECORD_BYTES = 20_000
_NAMESPACES = ("default", "sport")
_PLACES = ("Aarhus", "Varde", "Holm", "Lund", "Skive", "Tarm")


@dataclass(frozen=True, slots=True)
class Sent:
    """One record as it goes to Kafka."""

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class StreamModel:
    """`records(n)` gives the next n records and notes what they mean: `live` (title, text), and `poison` records.

    A tenth of the documents number their versions themselves, and send them in any order.
    """

    seed: int
    wordless_is_poison: bool = True  # the lexical model has no key for a text of common words alone
    live: dict[Document, tuple[str, str]] = field(default_factory=dict)
    poison: set[tuple[bytes, bytes]] = field(default_factory=set)
    sent: int = 0
    _known: list[str] = field(default_factory=list)
    _newest_seq: dict[Document, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def records(self, count: int) -> Iterator[Sent]:
        for _ in range(count):
            self.sent += 1
            yield self._next()

    def _next(self) -> Sent:
        kind = self._random.random()
        if kind < 0.02:
            return self._poison()
        if kind < 0.60 or not self._known:
            self._known.append(f"doc-{self.sent}")
            return self._write(self._known[-1])
        name = self._known[-1 - min(int(self._random.expovariate(1 / 300)), len(self._known) - 1)]
        return self._delete(name) if kind < 0.72 else self._write(name)

    def _write(self, name: str) -> Sent:
        document, seq = self._document(name), self._seq(name)
        text = self._text()
        value = {"id": name, "text": text, "title": f"News {self.sent}", "namespace": document[0]}
        if self._counts(document, seq):
            self.live[document] = (value["title"], text)
        return Sent(name.encode(), json.dumps(value | ({"seq": seq} if seq else {})).encode())

    def _delete(self, name: str) -> Sent:
        document, seq = self._document(name), self._seq(name)
        if self._counts(document, seq):
            self.live.pop(document, None)
        headers = [(NAMESPACE_HEADER, document[0].encode()), *([(SEQ_HEADER, str(seq).encode())] if seq else [])]
        return Sent(name.encode(), None, tuple(headers))

    def _poison(self) -> Sent:
        name = f"poison-{self.sent}"
        kinds = [
            f"{{not json {self.sent}".encode(),
            b"\xff\xfe" + str(self.sent).encode(),
            json.dumps({"id": name}).encode(),
            json.dumps({"id": "", "text": f"Report {self.sent} has no id."}).encode(),
            json.dumps({"id": name, "text": "x" * MAX_RECORD_BYTES}).encode(),
            json.dumps({"id": name, "text": f"the of and {'a ' * (self.sent % 7)}"}).encode(),  # no word to search by
        ]
        poison = Sent(name.encode(), self._random.choice(kinds if self.wordless_is_poison else kinds[:-1]))
        assert poison.value is not None
        self.poison.add((poison.key, poison.value))
        return poison

    def _counts(self, document: Document, seq: int) -> bool:
        """Whether this version is the newest of its document so far."""
        if not seq:
            return True
        newest = seq > self._newest_seq.get(document, 0)
        if newest:
            self._newest_seq[document] = seq
        return newest

    def _text(self) -> str:
        place = self._random.choice(_PLACES)
        sentence = f"Report {self.sent} from {place} says that ferry {self._random.randrange(10**6)} sails again."
        long = self._random.random() < 0.03
        return " ".join(f"{sentence} It is part {part}." for part in range(20)) if long else sentence

    @staticmethod
    def _document(name: str) -> Document:
        return _NAMESPACES[int(name.removeprefix("doc-")) % 5 == 0], name

    def _seq(self, name: str) -> int:
        """A number for the documents that have them; never one twice, so that no two versions are equal."""
        if int(name.removeprefix("doc-")) % 10 != 3:
            return 0
        return 1 + self._random.randrange(10**9)

"""A memory bank in this process, for a script, a notebook, or an evaluation; it ranks as the service's LanceDB bank does.

bank = MemoryBank()
bank.add("The Tarn ferry sails from pier 9 since Monday.", title="New pier")
print(bank.ask("From which pier does the Tarn ferry sail?").text)

It keeps everything in memory and is not thread-safe; `save` and `load` keep it in a folder.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmt_core.errors import BankFileError, CheckpointError, ConfigError
from cmt_core.files import save_tensors
from cmt_core.generation.query import MOST_CANDIDATES
from cmt_core.grounded import ground, of_most_read, read_again, text_reads
from cmt_core.model import CMT, Memory
from cmt_core.retrieval.complement import completed_by
from cmt_core.retrieval.evidence import relevant
from cmt_core.retrieval.hybrid import HybridIndex, RowHit
from cmt_core.retrieval.ranking import HYBRID, Ranking
from cmt_core.text.windows import Window

__all__ = ["BankAnswer", "BankHit", "BankRow", "Entry", "MemoryBank"]

UNKNOWN = "I don't know."
_ROWS, _TENSORS, _FORMAT = "rows.jsonl", "memories.safetensors", 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A document to remember; `published_at` is timezone-aware."""

    text: str
    title: str = ""
    doc_id: str = ""
    url: str = ""
    source: str = ""
    published_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BankHit:
    """A window that was found: its document, its text, the cosine of its key and its ranking score."""

    entry: Entry
    window: int
    text: str
    score: float
    rank: float


@dataclass(frozen=True, slots=True)
class BankAnswer:
    """An answer with the windows that it was read from; `weights` are their shares of the LLM's attention (sum 1).

    `grounded` says whether it stands in their texts, `read_text` whether one of them was read as text for it.
    """

    text: str
    sources: list[BankHit]
    weights: list[float]
    grounded: bool = False
    read_text: bool = False


@dataclass(slots=True)
class BankRow:
    """One window; a memory that is None is compressed when it is first read: it is the same memory then."""

    entry: Entry
    window: Window
    key: NDArray[np.float16]
    tokens: bytes
    memory: Memory | None


class MemoryBank:
    """Documents as memories of one checkpoint, found by meaning and by words and read by its frozen LLM.

    `model` is `CMT.load()` unless one is given. Below `min_score` (cosine; None: as the service decides, with
    the checkpoint's own threshold) a memory is not relevant to a question.
    """

    def __init__(self, model: CMT | None = None, *, ranking: Ranking = HYBRID, min_score: float | None = None) -> None:
        self.model = model or CMT.load()
        self.ranking, self.min_score = ranking, min_score
        self._rows: list[BankRow] = []
        self._index: HybridIndex | None = None

    def __len__(self) -> int:
        """How many documents it holds."""
        return len(self.doc_ids)

    def add(
        self,
        text: str,
        *,
        title: str = "",
        doc_id: str = "",
        url: str = "",
        source: str = "",
        published_at: datetime | None = None,
    ) -> str:
        """Remembers a document, in the place of the one with its `doc_id`, and gives its id (a new one without).

        Raises ValueError for a text without words and for a time without a zone.
        """
        (added,) = self.extend([Entry(text, title, doc_id, url, source, published_at)])
        return added

    def extend(self, entries: Iterable[Entry], *, compress: bool = True) -> list[str]:
        """Remembers documents as `add` does, in batches; those without `compress` are compressed when they are first read."""
        named = [entry if entry.doc_id else replace(entry, doc_id=uuid.uuid4().hex) for entry in entries]
        latest = {entry.doc_id: entry for entry in named}
        made = [(entry, window) for entry in latest.values() for window in self._windows(entry)]
        windows = [window for _, window in made]
        keys = self.model.document_keys(windows)
        memories: Sequence[Memory | None] = self.model.compress(windows) if compress else [None] * len(windows)
        self._rows = [row for row in self._rows if row.entry.doc_id not in latest]
        self._rows += [
            BankRow(*one, key, tokens, memory)
            for one, key, tokens, memory in zip(made, keys.vectors, keys.tokens, memories, strict=True)
        ]
        self._index = None
        return [entry.doc_id for entry in named]

    def delete(self, doc_id: str) -> bool:
        """Forgets a document; whether there was one."""
        kept = [row for row in self._rows if row.entry.doc_id != doc_id]
        found = len(kept) < len(self._rows)
        self._rows, self._index = kept, None if found else self._index
        return found

    def search(self, question: str, k: int | None = None) -> list[BankHit]:
        """The k documents (the checkpoint's top_k by default) whose best window fits a question best, relevant or not."""
        if not self._rows:
            return []
        (found,) = self.nearest([question], k or self.model.default_top_k)
        return [self._hit(one) for one in found]

    def ask(
        self,
        question: str,
        k: int | None = None,
        *,
        max_new_tokens: int | None = None,
        mode: Literal["auto", "memory"] = "auto",
    ) -> BankAnswer:
        """Answers a question from the memories of the k best documents; "I don't know." when none is relevant.

        In mode `auto` an answer that does not stand in their texts is read again from the text of the best of them. Where answers
        are a few words, those from memory or text alone are spelled from the texts, and the likeliest of several candidates is
        taken.
        """
        k = k or self.model.default_top_k
        hits = self._relevant(question, self.search(question, self.model.looked_at(k)))
        found = [RowHit(row, hit.rank) for row, hit in self._placed(hits)]
        if not found:
            return BankAnswer(UNKNOWN, [], [])
        rows, ranks = [one.row for one in found], [one.score for one in found]
        longest = max_new_tokens or self.model.answer_tokens
        texts = [self._rows[row].window.reading for row in rows]
        asked = self.model.ask([question], self.codes([rows]), [ranks], completed_by=[completed_by(question, texts)])
        (answer,) = self.model.write(asked, longest, [texts] if mode == "memory" else (), MOST_CANDIDATES)
        answer, read = of_most_read(answer, k)
        hits, texts = [hits[place] for place in read], [texts[place] for place in read]
        reads = text_reads(self.model, [question], [answer], [texts])
        if mode == "auto" and reads.rows:
            asked = read_again(self.model, [question], reads)
            (again,) = self.model.write(asked, longest, reads.texts, MOST_CANDIDATES)
            answer = replace(again, text=f"{reads.begun[0]} {again.text}".strip(), weights=answer.weights)
        grounded = ground(self.model, question, answer, texts).grounded
        read_text = mode == "auto" and bool(reads.rows)
        return BankAnswer(answer.text, hits, answer.weights, grounded, read_text)

    @property
    def doc_ids(self) -> list[str]:
        """The ids of all documents, in the order in which they came."""
        return list(dict.fromkeys(row.entry.doc_id for row in self._rows))

    @property
    def rows(self) -> Sequence[BankRow]:
        """Every window of every document; rows are numbered in this order."""
        return self._rows

    @property
    def index(self) -> HybridIndex:
        """What finds rows, made anew after a change."""
        if self._index is None:
            names = [(row.entry.doc_id, row.window.number) for row in self._rows]
            keys = np.stack([row.key for row in self._rows])
            texts, tokens = [row.window.reading for row in self._rows], [row.tokens for row in self._rows]
            self._index = HybridIndex(texts, keys, self.ranking, names, tokens)
        return self._index

    @property
    def made(self) -> list[Memory]:
        """The memories that were compressed so far."""
        return [row.memory for row in self._rows if row.memory is not None]

    def nearest(self, questions: Sequence[str], k: int) -> list[list[RowHit]]:
        """The rows of the k best documents of every question, best first."""
        keys = self.model.query_keys(questions)
        return self.index.nearest(questions, keys.vectors, k, tokens=keys.tokens)

    def codes(self, rows: Sequence[Sequence[int]]) -> list[list[bytes]]:
        """Packed memories of several lists of rows, those compressed now that were not."""
        missing = sorted({r for row in rows for r in row if self._rows[r].memory is None})
        for r, memory in zip(missing, self.model.compress([self._rows[r].window for r in missing]), strict=True):
            self._rows[r].memory = memory
        return [[one.code for r in row if (one := self._rows[r].memory) is not None] for row in rows]

    def read_by(self, model: CMT) -> MemoryBank:
        """The same windows, found alike, with the memories that `model` reads: these, or its own where it is another
        checkpoint, compressed when they are first read.

        Raises ConfigError when the other checkpoint splits documents elsewhere.
        """
        if model.config.window_tokens != self.model.config.window_tokens:
            raise ConfigError("checkpoints with windows of different sizes can't share one bank")
        same = model.model_id == self.model.model_id
        return self._with(self._rows if same else [replace(row, memory=None) for row in self._rows], model, self._index)

    def converted(self, model: CMT, convert: Callable[[Memory], Memory]) -> MemoryBank:
        """The same bank for another checkpoint, each memory as `convert` makes it of the one here (None stays None)."""
        rows = [row if row.memory is None else replace(row, memory=convert(row.memory)) for row in self._rows]
        return self._with(rows, model, self._index)

    def part(self, doc_ids: Container[str]) -> MemoryBank:
        """The bank as it would be with these documents only."""
        numbers = [number for number, row in enumerate(self._rows) if row.entry.doc_id in doc_ids]
        return self._with([self._rows[number] for number in numbers], self.model, self.index.part(numbers))

    def save(self, folder: str | Path) -> None:
        """Writes the bank into a folder, in the place of a bank that is there; texts and memories are equally confidential.

        Raises BankFileError when the folder holds something else or can't be written.
        """
        target = Path(folder)
        if target.exists() and not (target / _ROWS).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise BankFileError(f"{target.absolute()} holds something that is no bank: name another folder")
        self.codes([range(len(self._rows))])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
                self._write(Path(scratch) / "new")
                if target.exists():
                    target.rename(Path(scratch) / "old")
                (Path(scratch) / "new").rename(target)
        except OSError as error:
            raise BankFileError(f"the bank can't be written to {target.absolute()}: {error.strerror}") from None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: CMT | None = None,
        *,
        ranking: Ranking = HYBRID,
        min_score: float | None = None,
    ) -> MemoryBank:
        """A bank that was saved. Raises BankFileError when there is none that can be read, CheckpointError when its memories
        are of another checkpoint than the model's."""
        head, rows, tensors = _read(Path(folder))
        bank = cls(model, ranking=ranking, min_score=min_score)
        if head["model_id"] != bank.model.model_id:
            raise CheckpointError(
                f"bank {folder} holds memories of checkpoint {head['model_id'][:12]}, the model's is "
                f"{bank.model.model_id[:12]}: add its documents again, or load it with its own"
            )
        memories = _parts(tensors["memories"], tensors["sizes"])
        # a bank that was saved by an older version has no tokens
        tokens = _parts(tensors["tokens"], tensors["token_sizes"]) if "tokens" in tensors else [b""] * len(rows)
        for row, key, packed, code in zip(rows, tensors["keys"].numpy(), tokens, memories, strict=True):
            moment = row["published_at"]
            entry = Entry(**(row["entry"] | {"published_at": datetime.fromisoformat(moment) if moment else None}))
            bank._rows.append(BankRow(entry, Window(**row["window"]), key, packed, Memory(code, row["n_tokens"])))
        return bank

    def _with(self, rows: Sequence[BankRow], model: CMT, index: HybridIndex | None) -> MemoryBank:
        bank = MemoryBank(model, ranking=self.ranking, min_score=self.min_score)
        bank._rows, bank._index = list(rows), index
        return bank

    def _windows(self, entry: Entry) -> list[Window]:
        if entry.published_at is not None and entry.published_at.tzinfo is None:
            raise ValueError(f"published_at {entry.published_at} has no time zone: add one, such as datetime.UTC")
        windows = self.model.windows(entry.title, entry.text)
        if not windows:
            raise ValueError(f"document {entry.doc_id!r} has no words to remember")
        return windows

    def _relevant(self, question: str, hits: Sequence[BankHit]) -> list[BankHit]:
        if self.min_score is not None:
            return [hit for hit in hits if hit.score >= self.min_score]
        texts = [f"{hit.entry.title}\n{hit.text}" if hit.entry.title else hit.text for hit in hits]
        fits = relevant([question], texts, [hit.score for hit in hits], self.model.min_score)
        return [hit for hit, is_relevant in zip(hits, fits, strict=True) if is_relevant]

    def _hit(self, found: RowHit) -> BankHit:
        row = self._rows[found.row]
        return BankHit(row.entry, row.window.number, row.window.text, found.cosine, found.score)

    def _placed(self, hits: Sequence[BankHit]) -> list[tuple[int, BankHit]]:
        """Hits with the numbers of their rows."""
        numbers = {(row.entry.doc_id, row.window.number): number for number, row in enumerate(self._rows)}
        return [(numbers[hit.entry.doc_id, hit.window], hit) for hit in hits]

    def _write(self, folder: Path) -> None:
        folder.mkdir()
        codes = [row.memory.code for row in self._rows if row.memory is not None]
        keys = np.stack([row.key for row in self._rows]) if self._rows else np.zeros((0, self.model.d_key), np.float16)
        save_tensors(
            {
                "keys": torch.from_numpy(keys),
                "memories": _joined(codes),
                "sizes": _sizes(codes),
                "tokens": _joined([row.tokens for row in self._rows]),
                "token_sizes": _sizes([row.tokens for row in self._rows]),
            },
            folder / _TENSORS,
        )
        with (folder / _ROWS).open("w", encoding="utf-8") as file:
            for line in [{"format": _FORMAT, "model_id": self.model.model_id}, *map(_line, self._rows)]:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _joined(parts: Sequence[bytes]) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(parts) or b"\0"), dtype=torch.uint8)


def _sizes(parts: Sequence[bytes]) -> torch.Tensor:
    return torch.tensor([len(part) for part in parts], dtype=torch.int64)


def _parts(joined: torch.Tensor, sizes: torch.Tensor) -> list[bytes]:
    packed, ends = joined.numpy().tobytes(), np.cumsum(sizes.numpy()).tolist()
    return [packed[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _line(row: BankRow) -> dict[str, Any]:
    entry = asdict(row.entry)
    moment: datetime | None = entry.pop("published_at")
    return {
        "entry": entry,
        "published_at": moment.astimezone(UTC).isoformat() if moment else None,
        "window": {"number": row.window.number, "title": row.window.title, "text": row.window.text},
        "n_tokens": row.memory.n_tokens if row.memory else 0,
    }


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Head, rows and tensors of a saved bank."""
    try:
        with (folder / _ROWS).open(encoding="utf-8") as file:
            head, *rows = [json.loads(line) for line in file]
        tensors = load_file(folder / _TENSORS)
        if head["format"] != _FORMAT or not len(rows) == len(tensors["keys"]) == len(tensors["sizes"]):
            raise ValueError("its files do not belong together, or are of another version")
    except FileNotFoundError:
        raise BankFileError(f"there is no saved bank in {folder.absolute()}") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BankFileError(f"the bank in {folder.absolute()} can't be read: {error}") from None
    return head, rows, tensors

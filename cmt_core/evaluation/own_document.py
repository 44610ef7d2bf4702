"""How well memories are read by themselves: questions about the question's own document, as text and as memories.

No retrieval, no choice of documents: the same LLM, template and questions, and only what stands for the document differs. Every
answer is kept in a file as it is made, so an evaluation that was ended goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.data.qa import QAExample
from cmt_core.errors import CheckpointError, ConfigError
from cmt_core.evaluation.bank import filled_bank, own_window
from cmt_core.evaluation.budget import rounding
from cmt_core.evaluation.metrics import contains_answer, contains_facts, exact_match, f1
from cmt_core.evaluation.rounding import FLOAT16, with_bits
from cmt_core.evaluation.stream import sample
from cmt_core.evaluation.systems import System, system
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT
from cmt_core.retrieval.hybrid import RowHit
from cmt_core.text.prompt import SHORT_ANSWERS

__all__ = ["KeptAnswers", "OwnPoint", "beside", "own_documents"]

_AT_ONCE = 16
_SYSTEMS = {"text": "rag_prefix", "none": "closed_prefix"}


@dataclass(frozen=True, slots=True)
class OwnPoint:
    """Scores of one way to have the document (text, memory, none), 0 to 100; `text_share` is F1 in per cent of the text's.

    `contained` are answers that contain a gold answer, or all facts that are asked for. `nats` is the log-loss per token of the
    first gold answer and its end; `token_bytes` is what is kept of a token.
    """

    system: str
    checkpoint: str
    token_bytes: int
    window_kb: float
    questions: int
    em: float
    f1: float
    text_share: float
    contained: float
    nats: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Row:
    """One answer, as the file keeps it."""

    asked_of: str
    question: str
    document: str
    answer: str
    nats: float
    seconds: float


class KeptAnswers:
    """The answers made so far, in a JSONL file, or in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ConfigError for a file that holds something else."""
        self._path = path
        self._rows: dict[tuple[str, str, str], _Row] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
            for line in lines:
                self._note(_Row(**json.loads(line)))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} doesn't hold answers of an evaluation ({error}): name another folder") from None

    def get(self, asked_of: str, example: QAExample) -> _Row | None:
        """The answer that was made to a question, or None."""
        return self._rows.get((asked_of, example.question, example.doc_id))

    def extend(self, rows: Sequence[_Row]) -> None:
        """Keeps answers, in the file too."""
        for row in rows:
            self._note(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)

    def _note(self, row: _Row) -> None:
        self._rows[row.asked_of, row.question, row.document] = row


def own_documents(
    models: Iterable[tuple[str, CMT]],
    examples: Sequence[QAExample],
    *,
    questions: int,
    bits: Sequence[int] = (),
    seed: int = 0,
    max_new_tokens: int = 24,
    instructions: str = SHORT_ANSWERS,
    kept: KeptAnswers | None = None,
    closed: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[OwnPoint]:
    """Scores named checkpoints of one LLM on seeded questions about their own documents, each as it is done.

    Before the first checkpoint of a reading (a prefix, or a place in the chat template) comes its `text`; `closed` adds the
    same prompt without a document. With `bits` each checkpoint's codes, written once, are rounded to each number of bits a token.
    Raises ConfigError as `with_bits` does.
    """
    answers = kept or KeptAnswers()
    _, asked = sample(examples, questions, None, seed)
    texts: dict[str, float] = {}
    for name, model in models:
        # one window holds an answer's document where a memory does: both read the same words
        documents = list(dict.fromkeys((row.doc_id, row.title, row.text) for row in asked))
        bank = filled_bank(model, documents)
        reading = _reading(model)
        if reading not in texts:
            for kind in ("text", "none") if closed else ("text",):
                one = system(_SYSTEMS[kind], model, instructions=instructions)
                rows = _answers(one, f"{kind} {reading}", bank, asked, max_new_tokens, answers, report)
                size = 2 * model.backbone.shape.width if kind == "text" else 0
                point = _point(kind, "", size, size * model.config.window_tokens, rows, asked, texts.get(reading))
                texts.setdefault(reading, point.f1)
                yield point
        for read, filled in _rounded(model, bank, asked, bits):
            one = system(model.config.aggregation, read, instructions=instructions)
            rows = _answers(one, f"memory {read.model_id}", filled, asked, max_new_tokens, answers, report)
            yield _point("memory", name, read.config.token_bytes, read.memory_bytes, rows, asked, texts[reading])


def _rounded(
    model: CMT, bank: MemoryBank, asked: Sequence[QAExample], bits: Sequence[int]
) -> Iterator[tuple[CMT, MemoryBank]]:
    """The checkpoint with its bank, at each number of bits a token, or as it is."""
    if not bits:
        yield model, bank
        return
    models = [with_bits(model, one) for one in bits]
    exact = bank.converted(with_bits(model, FLOAT16), lambda memory: memory)  # nothing is written yet
    exact.codes([sorted({own_window(bank, row) for row in asked})])
    for one in models:
        yield one, exact.converted(one, rounding(exact.model, one))


def _contains(example: QAExample, answer: str) -> bool:
    return contains_facts(answer, example.facts) if example.facts else contains_answer(answer, example.answers)


def beside(model: CMT, folder: Path) -> CMT:
    """The checkpoint in `folder` around the LLM and the encoder that `model` has loaded.

    Raises CheckpointError for a checkpoint of another LLM.
    """
    parts = Checkpoint.load(folder)
    if parts.llm_fingerprint != model.backbone.fingerprint(torch.bfloat16):
        raise CheckpointError(
            f"checkpoint {folder} is of another LLM than the one that is loaded: evaluate it by itself"
        )
    return CMT(model.backbone, parts, model.retriever, Checkpoint.model_id(folder, parts.llm_fingerprint, ""))


def _reading(model: CMT) -> str:
    """What tells one way of standing before a document from another: the LLM with the tokens before it."""
    prefix = model.encoding_prefix.half().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(prefix + model.config.instruction.encode()).hexdigest()[:16]


def _answers(
    one: System,
    asked_of: str,
    bank: MemoryBank,
    asked: Sequence[QAExample],
    max_new_tokens: int,
    kept: KeptAnswers,
    report: Callable[[str], None],
) -> list[_Row]:
    """An answer to every question, made or found among those kept."""
    own = {id(row): own_window(bank, row) for row in asked}
    new = [row for row in asked if kept.get(asked_of, row) is None]
    new.sort(key=lambda row: len(bank.rows[own[id(row)]].window.text))
    for start in range(0, len(new), _AT_ONCE):
        part = new[start : start + _AT_ONCE]
        made = one.answers(bank, part, [[RowHit(own[id(row)], 1.0)] for row in part], max_new_tokens)
        kept.extend(
            [
                _Row(asked_of, row.question, row.doc_id, answer.answer.text, answer.gold_nats, answer.seconds)
                for row, answer in zip(part, made, strict=True)
            ]
        )
        report(f"{asked_of.split()[0]}: {len(asked) - len(new) + start + len(part)} of {len(asked)}")
    return [row for row in (kept.get(asked_of, example) for example in asked) if row is not None]


def _point(
    kind: str,
    checkpoint: str,
    token_bytes: int,
    window_bytes: int,
    rows: Sequence[_Row],
    asked: Sequence[QAExample],
    text_f1: float | None,
) -> OwnPoint:
    pairs = list(zip([row.answer for row in rows], [example.answers for example in asked], strict=True))

    def share(measure: Callable[[str, Sequence[str]], float]) -> float:
        return 100 * sum(measure(answer, gold) for answer, gold in pairs) / len(pairs)

    score = share(f1)
    of_text = score if text_f1 is None else text_f1
    return OwnPoint(
        system=kind,
        checkpoint=checkpoint,
        token_bytes=token_bytes,
        window_kb=round(window_bytes / 1000, 1),
        questions=len(pairs),
        em=round(share(exact_match), 2),
        f1=round(score, 2),
        text_share=round(100 * score / of_text, 1) if of_text else 0.0,
        contained=round(100 * sum(map(_contains, asked, (answer for answer, _ in pairs))) / len(pairs), 2),
        nats=round(sum(row.nats for row in rows) / len(rows), 4),
        seconds=round(sum(row.seconds for row in rows), 1),
    )

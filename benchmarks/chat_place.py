"""Where documents stand best in an LLM's chat template: the gold answers' nats and the F1 with the exact documents there.

python -m benchmarks.chat_place pypi:qwen2.5-coder-0.5b-instruct [QUESTIONS]     # squad_dev in CMT_DATA_DIR; decision 0092

Every place is asked the same questions about their own documents, behind exact keys and values: what differs is the template.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.evaluation.metrics import contains_answer, f1
from cmt_core.fitting.reader import ChatReader, Item
from cmt_core.generation.greedy import generate
from cmt_core.llm.backbone import Backbone, pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.reading.chat_prompting import ChatPrompting
from cmt_core.reading.prompting import Turns
from cmt_core.text.prompt import SHORT_ANSWERS

_BATCH = 16
_WINDOW = 256  # tokens
_ANSWER_TOKENS = 24
_KIND = "You are a helpful assistant. Answer from the passages."
_PASSAGES = "Passages:\n"

Messages = list[dict[str, str]]
Place = Callable[[str, str, str], Messages]  # documents, instructions, question


def _said(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _in_system(documents: str, instructions: str, question: str) -> Messages:
    return [
        {"role": "system", "content": f"{_KIND}\n\n{_PASSAGES}{documents}{instructions}"},
        {"role": "user", "content": question},
    ]


def _in_user_turn(documents: str, instructions: str, question: str) -> Messages:
    return [{"role": "user", "content": f"{_KIND}\n\n{_PASSAGES}{documents}{_said(instructions, question)}"}]


def _behind_system(documents: str, instructions: str, question: str) -> Messages:
    return [
        {"role": "system", "content": _KIND},
        {"role": "user", "content": f"{_PASSAGES}{documents}{_said(instructions, question)}"},
    ]


PLACES: dict[str, Place] = {
    "in the system message": _in_system,
    "in the user turn, the template's own system message": _in_user_turn,
    "in the user turn, the instruction as system message": _behind_system,
}


class _Placed(ChatPrompting):
    """The template with documents at one of the places."""

    def __init__(self, reader: ChatReader, place: Place) -> None:
        self._place = place
        super().__init__(reader.tokens, reader.backbone.model.generation_config)

    def _asked(self, question: str, earlier: Turns, instructions: str) -> tuple[str, str]:
        before, _, after = self._rendered(self._place(self._documents, instructions, question)).partition(
            self._documents
        )
        return before, after

    def _is_steady(self) -> bool:
        return True


def _items(reader: ChatReader, asked: Sequence[QAExample]) -> list[Item]:
    items = reader.windows([row.text for row in asked], _WINDOW, lambda *_: None, "")
    for item, row in zip(items, asked, strict=True):
        item.prompt = reader.prompting.question(row.question, (), SHORT_ANSWERS)
        item.target = reader.prompting.answer(row.answers[0], closed=False)
    return items


def _score(reader: ChatReader, asked: Sequence[QAExample]) -> tuple[float, float, float]:
    """Nats a token of the gold answers, F1 and share of answers that contain one, in per cent."""
    items = _items(reader, asked)
    nats, scores, contained = 0.0, 0.0, 0
    order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        part = [items[i] for i in rows]
        with torch.inference_mode():
            context = reader.context([item.exact for item in part])
            columns = context.seen.shape[1]
            nats += float(reader.nats(context, part).sum())
            context.cache.forget_after(columns)
            prompts = [item.prompt or [] for item in part]
            made = generate(reader.backbone, context, prompts, _ANSWER_TOKENS, reader.prompting.stop_ids)
        for i, one in zip(rows, made, strict=True):
            text = reader.tokens.text(one.ids).strip()
            scores += f1(text, asked[i].answers)
            contained += contains_answer(text, asked[i].answers)
    return nats / len(items), 100 * scores / len(items), 100 * contained / len(items)


def main() -> None:
    """Prints a line for each place."""
    llm, questions = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64
    data = Path(os.environ.get("CMT_DATA_DIR", "data")) / "squad_dev.jsonl.gz"
    asked = random.Random(0).sample(list(read_examples(data)), questions)
    backbone = Backbone.load(resolve_model(llm, Path("~/.cache/cmt").expanduser()), pick_device("auto"))
    print(f"{llm}, {questions} questions of squad_dev, {str(backbone.dtype).removeprefix('torch.')}")
    reader = ChatReader(backbone)
    for name, place in PLACES.items():
        reader.prompting = _Placed(reader, place)
        reader.head = reader._read_head()
        nats, score, contained = _score(reader, asked)
        print(f"{nats:.3f} nats, F1 {score:.1f}, contained {contained:.1f}%: {name}", flush=True)


if __name__ == "__main__":
    main()

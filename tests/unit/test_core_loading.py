"""Models that load and threads that compute share one process, whose number type transformers changes while it loads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.generation.query import Query
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever
from tests.unit.conftest import TinyFolders


@pytest.fixture
def process_type() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets the number type of the process for one test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def test_models_that_load_beside_each_other_leave_the_number_type_of_the_process(tiny_folders: TinyFolders) -> None:
    cpu, codes = torch.device("cpu"), []
    loads: list[Callable[[], object]] = [
        lambda: Backbone.load(tiny_folders.llm, cpu, torch.bfloat16),
        lambda: Retriever(tiny_folders.retriever, cpu),
        lambda: codes.append(Checkpoint.load(tiny_folders.checkpoint).code),
    ]
    threads = [threading.Thread(target=load) for load in loads * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() == torch.float32
    assert [code.bias.dtype for code in codes if code is not None] == [torch.float32] * 3


@pytest.mark.parametrize("while_loading", [torch.bfloat16, torch.float64], ids=str)
def test_memories_and_answers_do_not_depend_on_a_model_that_loads_meanwhile(
    exact_cmt: CMT,
    corpus: tuple[str, ...],
    while_loading: torch.dtype,
    process_type: Callable[[torch.dtype], None],
) -> None:
    windows = [window for text in corpus for window in exact_cmt.windows("", text)]

    def everything() -> tuple[list[bytes], list[list[Sequence[int | None]]], list[list[float]]]:
        exact_cmt.decoded = DecodedMemories(2**20, exact_cmt.config.window_tokens)
        codes = [memory.code for memory in exact_cmt.compress(windows)]
        batch = exact_cmt.answer_batch()
        asked = [
            Query("Who opened the bridge?", memories=codes[:3], scores=(0.52, 0.51, 0.5)),
            Query("Whales?", "rag", scores=(0.5, 0.4), passages=corpus[:2]),
            Query("By how much?", "closed", scores=()),
            Query("Who opened it?", "hybrid", memories=codes[:2], scores=(0.6, 0.3), passages=corpus[:1]),
        ]
        started = batch.join(asked)
        steps = [[row.tokens for row in started], *([*batch.step().values()] for _ in range(5))]
        return codes, steps, exact_cmt.query_keys([asked[0].question]).vectors.tolist()

    expected = everything()
    process_type(while_loading)
    assert everything() == expected

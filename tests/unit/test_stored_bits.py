"""Claims about `model.bits_per_token`: memories stored with fewer bits than the checkpoint was trained for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cmt_core.errors import ConfigError
from cmt_core.model import CMT
from services.bank.reader import BankReader
from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.reindex import reindex_bank
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.commands.encoding import encoder
from services.errors import BankMismatch
from services.models import load_cmt
from services.query.engine.hot_swap import revision_of, target_of, with_target
from services.settings import Settings

TEXT = "The capital of Norland is Varde. It lies by the sea, and ships come from far away."


def settings(tiny_folders: Any, bits: int | None) -> Settings:
    folders = {"llm": tiny_folders.llm, "retriever": tiny_folders.retriever, "checkpoint": tiny_folders.checkpoint}
    model = {name: str(folder) for name, folder in folders.items()}
    return Settings.model_validate({"model": {**model, "device": "cpu", "bits_per_token": bits}})


def layout(model: CMT) -> BankLayout:
    return BankLayout(model.model_id, model.d_key, model.memory_bytes)


def document(model: CMT) -> DocumentWrite:
    windows = model.windows("", TEXT)
    (key,), (memory,) = model.document_keys(windows).vectors, model.compress(windows)
    position = Position(0, 0, 0, datetime(2026, 1, 1, tzinfo=UTC))
    chunk = Chunk(TEXT, key, memory.code, memory.n_tokens)
    return DocumentWrite("default", "a", None, None, None, None, None, position, (chunk,))


def test_bank_of_other_bits_is_refused_until_it_is_reindexed_to_half_its_memories(
    tiny_folders: Any, tmp_path: Path
) -> None:
    own, half = (load_cmt(settings(tiny_folders, bits)) for bits in (None, 96))
    assert (half.memory_bytes - 2) * 2 == own.memory_bytes - 2
    uri = str(tmp_path / "bank")
    with BankWriter(uri, layout(own)) as writer:
        writer.commit([document(own)])
    question = half.query_keys(["Which town is the capital of Norland?"]).vectors
    with pytest.raises(BankMismatch, match=f"{own.model_id}, this is {half.model_id}: run `cmt bank reindex`"):
        BankReader(uri, layout(half)).search(question, 1)
    assert reindex_bank(uri, None, layout(half), encoder(half)) == 1
    ((hit,),) = BankReader(uri, layout(half)).search(question, 1)
    assert hit.memory == half.compress(half.windows("", TEXT))[0].code
    assert half.answer(["Which town?"], [[hit.memory]], max_new_tokens=2)


def test_checkpoints_own_bits_change_nothing(tiny_folders: Any) -> None:
    own, same = (load_cmt(settings(tiny_folders, bits)) for bits in (None, 192))
    assert layout(own) == layout(same)


def test_more_bits_than_the_components_hold_are_refused(tiny_folders: Any) -> None:
    with pytest.raises(ConfigError, match="48 components hold 8 to 384 bits, not 392"):
        load_cmt(settings(tiny_folders, 392))


def test_reload_takes_the_bits_along(tiny_folders: Any) -> None:
    own, half = settings(tiny_folders, None), settings(tiny_folders, 96)
    assert revision_of(target_of(own)) != revision_of(target_of(half))
    assert with_target(own, target_of(half)).model.bits_per_token == 96
    assert with_target(half, target_of(own)).model.bits_per_token is None

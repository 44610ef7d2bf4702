"""The bank in this process: documents in, answers out, found as the service finds them, and the same after a save."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cmt_core.errors import BankFileError, CheckpointError
from cmt_core.generation.query import MOST_CANDIDATES
from cmt_core.memory_bank import UNKNOWN, BankHit, Entry, MemoryBank
from cmt_core.model import CMT
from cmt_core.text.spelling import SourceSpans

NEWS = [
    Entry("The harbour of Aru opened on Monday. A band played.", "Harbour opens", "aru"),
    Entry(
        "Whales were seen in Belo bay by a fisher.", "Whales", "belo", published_at=datetime(2026, 11, 2, tzinfo=UTC)
    ),
    Entry("Prices of bread rose in May.", "Bread", "bread", url="https://news.example/bread", source="Wire"),
]


def _reading(hit: BankHit) -> str:
    return f"{hit.entry.title}\n{hit.text}" if hit.entry.title else hit.text


@pytest.fixture
def bank(tiny_cmt: CMT) -> MemoryBank:
    made = MemoryBank(tiny_cmt, min_score=-1.0)
    made.extend(NEWS)
    return made


def test_a_document_is_found_by_its_words_and_comes_with_all_that_it_is(bank: MemoryBank) -> None:
    for question, doc_id in (("Who saw whales in Belo?", "belo"), ("When did the Aru harbour open?", "aru")):
        assert bank.search(question, 1)[0].entry.doc_id == doc_id
    assert bank.search("bread prices", 3)[0].entry == NEWS[2]


def test_an_answer_is_the_models_own_from_the_memories_of_its_sources(bank: MemoryBank, tiny_cmt: CMT) -> None:
    answer = bank.ask("Who saw whales in Belo?", 2, max_new_tokens=4, mode="memory")
    assert not answer.read_text
    assert answer.sources[0].entry.doc_id == "belo"
    assert sum(answer.weights) == pytest.approx(1.0)
    codes = [tiny_cmt.compress(tiny_cmt.windows(hit.entry.title, hit.entry.text))[0].code for hit in answer.sources]
    scores, texts = [[hit.rank for hit in answer.sources]], [_reading(hit) for hit in answer.sources]
    question = ["Who saw whales in Belo?"]
    (same,) = tiny_cmt.answer(
        question, [codes], max_new_tokens=4, scores=scores, sources=[texts], candidates=MOST_CANDIDATES
    )
    assert answer.text == same.text
    (free,) = tiny_cmt.answer(question, [codes], max_new_tokens=4, scores=scores)
    assert SourceSpans(texts).may_begin(answer.text)
    assert not SourceSpans(texts).may_begin(free.text)  # a random LLM's words


def test_an_answer_that_stands_nowhere_is_read_from_the_text_attended_to_most(bank: MemoryBank, tiny_cmt: CMT) -> None:
    memory = bank.ask("Who saw whales in Belo?", 2, max_new_tokens=4, mode="memory")
    answer = bank.ask("Who saw whales in Belo?", 2, max_new_tokens=4)
    assert answer.read_text
    reading = _reading(max(zip(answer.weights, answer.sources, strict=True), key=lambda pair: pair[0])[1])
    asked = tiny_cmt.ask_of_text(["Who saw whales in Belo?"], [[reading]])
    (same,) = tiny_cmt.write(asked, 4, [[reading]], MOST_CANDIDATES)
    assert answer.text == same.text
    assert answer.weights == memory.weights


def test_a_later_version_replaces_the_earlier_one(bank: MemoryBank) -> None:
    assert bank.add("The harbour of Aru closed again.", title="Harbour", doc_id="aru") == "aru"
    assert len(bank) == 3
    assert bank.search("Aru harbour", 1)[0].text == "The harbour of Aru closed again."
    both = [Entry("One cat slept.", doc_id="cat"), Entry("Two cats slept.", doc_id="cat")]
    assert bank.extend(both) == ["cat", "cat"]
    assert bank.search("cats slept", 1)[0].text == "Two cats slept."


def test_a_document_without_an_id_gets_one_and_can_be_deleted(bank: MemoryBank) -> None:
    first, second = bank.add("A kite flew."), bank.add("A kite flew.")
    assert first != second
    assert bank.delete(first)
    assert not bank.delete(first)
    assert {hit.entry.doc_id for hit in bank.search("kite", 9)} >= {second}
    assert first not in bank.doc_ids


def test_nothing_relevant_is_said_and_an_empty_bank_knows_nothing(tiny_cmt: CMT) -> None:
    empty = MemoryBank(tiny_cmt)
    assert empty.search("Anything?") == []
    assert empty.ask("Anything?").text == UNKNOWN
    strict = MemoryBank(tiny_cmt, min_score=1.1)
    strict.extend(NEWS)
    answer = strict.ask("Who saw whales in Belo?")
    assert (answer.text, answer.sources, answer.weights) == (UNKNOWN, [], [])


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff"])
def test_a_text_without_words_is_refused_and_changes_nothing(text: str, bank: MemoryBank) -> None:
    with pytest.raises(ValueError, match="has no words to remember"):
        bank.extend([Entry("A good one.", doc_id="good"), Entry(text, doc_id="bad")])
    assert bank.doc_ids == ["aru", "belo", "bread"]


def test_a_time_without_a_zone_is_refused(bank: MemoryBank) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        bank.add("A text.", published_at=datetime(2026, 1, 1))


def test_a_long_document_counts_once_by_its_best_window(bank: MemoryBank) -> None:
    long = " ".join(f"Sentence {number} is about the weather of that day." for number in range(80))
    bank.add(f"{long} The lighthouse of Imo was painted red.", doc_id="long")
    hits = bank.search("Which lighthouse of Imo was painted?", 4)
    assert [hit.entry.doc_id for hit in hits].count("long") == 1
    assert "Imo" in hits[0].text
    assert hits[0].window > 0


def test_a_saved_bank_is_the_same_bank(bank: MemoryBank, tiny_cmt: CMT, tmp_path: Path) -> None:
    for _ in range(2):  # the second time in the place of the first
        bank.save(tmp_path / "bank")
    again = MemoryBank.load(tmp_path / "bank", tiny_cmt, min_score=-1.0)
    question = "Who saw whales in Belo?"
    assert again.search(question, 3) == bank.search(question, 3)
    assert again.ask(question, max_new_tokens=4) == bank.ask(question, max_new_tokens=4)
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]


def test_tokens_are_saved_and_a_bank_that_was_saved_before_them_is_read_without(
    bank: MemoryBank, tiny_cmt: CMT, tmp_path: Path
) -> None:
    folder = tmp_path / "bank"
    bank.save(folder)
    kept = [row.tokens for row in MemoryBank.load(folder, tiny_cmt).rows]
    assert kept == [row.tokens for row in bank.rows]
    assert all(kept)
    file = folder / "memories.safetensors"
    tensors = load_file(file)
    del tensors["tokens"], tensors["token_sizes"]
    save_file(tensors, file)
    older = MemoryBank.load(folder, tiny_cmt)
    assert [row.tokens for row in older.rows] == [b""] * len(kept)
    question = bank.rows[0].entry.text
    assert older.search(question)[0].entry.doc_id == bank.rows[0].entry.doc_id


def test_an_empty_bank_can_be_saved(tiny_cmt: CMT, tmp_path: Path) -> None:
    MemoryBank(tiny_cmt).save(tmp_path / "bank")
    assert len(MemoryBank.load(tmp_path / "bank", tiny_cmt)) == 0


def test_folders_that_are_no_bank_are_refused_in_one_line(bank: MemoryBank, tiny_cmt: CMT, tmp_path: Path) -> None:
    with pytest.raises(BankFileError, match="there is no saved bank in"):
        MemoryBank.load(tmp_path / "none", tiny_cmt)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(BankFileError, match="holds something that is no bank"):
        bank.save(tmp_path / "letters")
    assert (tmp_path / "letters" / "mine.txt").read_text(encoding="utf-8") == "keep me"
    bank.save(tmp_path / "bank")
    rows = (tmp_path / "bank" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "bank" / "rows.jsonl").write_text("\n".join(rows[:-1]), encoding="utf-8")
    with pytest.raises(BankFileError, match="do not belong together"):
        MemoryBank.load(tmp_path / "bank", tiny_cmt)


def test_memories_of_another_checkpoint_are_refused(bank: MemoryBank, tiny_cmt: CMT, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank")
    saved = (tmp_path / "bank" / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "bank" / "rows.jsonl").write_text(saved.replace(tiny_cmt.model_id, "another"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds memories of checkpoint another"):
        MemoryBank.load(tmp_path / "bank", tiny_cmt)


def test_the_front_door_exports_what_it_says_and_imports_nothing_heavy_before_it_is_used() -> None:
    script = (
        "import sys, cmt_core; print('torch' in sys.modules, *cmt_core.__all__, cmt_core.__version__); cmt_core.CMT"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy, *names = done.stdout.split()
    assert heavy == "False"
    assert {"CMT", "MemoryBank", "CoreError"} <= set(names)

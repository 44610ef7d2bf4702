"""The paper's experiments on a tiny real model: the right documents are in each bank, and Φ stays as it is."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_core.data.articles import read_articles
from cmt_core.data.qa import QAExample
from cmt_core.errors import ConfigError, DataError
from cmt_core.evaluation.report import markdown_table, write_experiment
from cmt_core.model import CMT

EXAMPLES = [
    QAExample(f"d{i}", "", f"Town number {i} has {i + 100} bells.", f"How many bells has town {i}?", (str(i + 100),))
    for i in range(12)
]


def as_answered(model: CMT, name: str) -> list[QAExample]:
    """The examples with the system's own answers, each read from its own document, as the right ones.

    A random model is right about nothing, so that its scores alone would be 0 whatever it reads.
    """
    from cmt_core.evaluation.bank import filled_bank, own_window
    from cmt_core.evaluation.systems import system
    from cmt_core.retrieval.hybrid import RowHit

    bank = filled_bank(model, [(row.doc_id, row.title, row.text) for row in EXAMPLES])
    own = [[RowHit(own_window(bank, row), 1.0)] for row in EXAMPLES]
    said = system(name, model).answers(bank, EXAMPLES, own, 24)
    return [replace(row, answers=(one.answer.text,)) for row, one in zip(EXAMPLES, said, strict=True)]


def test_retention_asks_the_same_questions_of_growing_banks(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.experiments import retention

    closed = as_answered(tiny_cmt, "closed")
    points = retention(tiny_cmt, closed, [3, 12], systems=("stack", "closed"), questions=3, k=1)
    assert [(point.x, point.system, point.documents) for point in points] == [
        (3.0, "stack", 3),
        (3.0, "closed", 3),
        (12.0, "stack", 12),
        (12.0, "closed", 12),
    ]
    assert points[1].f1 == points[3].f1 == 100  # closed book can't see the bank
    assert max(points[0].f1, points[2].f1) < 100  # and who sees it answers otherwise
    points = retention(tiny_cmt, as_answered(tiny_cmt, "stack"), [3, 12], systems=("stack",), questions=3, k=1)
    assert points[0].oracle_f1 == points[1].oracle_f1 == 100  # a question's own document does not change


def test_robustness_adds_documents_that_nobody_asks_about(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.experiments import robustness

    examples = as_answered(tiny_cmt, "stack")
    points = robustness(tiny_cmt, examples, [0.0, 0.75], relevant=3, systems=("stack",), questions=3, k=1)
    assert [(point.x, point.documents) for point in points] == [(0.0, 3), (75.0, 12)]
    assert points[0].f1 > 0  # some found their own document, and say of it what they said before
    assert [point.f1_kept for point in points] == [100.0, round(100 * points[1].f1 / points[0].f1, 1)]
    filler = [(f"f{i}", "", f"Filler number {i} about the sea.") for i in range(20)]
    points = robustness(tiny_cmt, EXAMPLES, [0.0, 0.8], relevant=4, filler=filler, systems=("stack",), questions=3, k=1)
    assert [(point.x, point.documents) for point in points] == [(0.0, 4), (80.0, 20)]
    # the sea has no bells, but the tokens of an encoder that was never trained may find some there
    assert 0 < points[1].recall_at_1 <= points[0].recall_at_1


def test_scaling_goes_on_with_filler(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.experiments import scaling

    filler = [(f"f{i}", "", f"Filler number {i} about the sea.") for i in range(8)]
    points = scaling(tiny_cmt, EXAMPLES, [4, 20, 500], filler=filler, systems=("stack",), questions=2, k=2)
    assert [point.documents for point in points] == [4, 20]  # there are no 500 documents
    assert all(point.search_ms > 0 for point in points)


def test_scaling_counts_each_window_of_a_long_article(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.experiments import scaling

    article = ("f", "The sea", " ".join(f"Wave number {i} is about as high as a house." for i in range(60)))
    windows = len(tiny_cmt.windows(article[1], article[2]))
    assert windows > 2
    points = scaling(tiny_cmt, EXAMPLES, [12, 14, 12 + windows], filler=[article], systems=("stack",), questions=1, k=1)
    assert [point.documents for point in points] == [12, 14, 12 + windows]


def test_a_lazy_bank_gives_the_memories_of_a_full_one(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.bank import filled_bank

    documents = [(row.doc_id, row.title, row.text) for row in EXAMPLES[:4]]
    lazy, full = (filled_bank(tiny_cmt, documents, compress=now) for now in (False, True))
    assert lazy.made == []
    assert lazy.codes([[2], [0, 2]]) == full.codes([[2], [0, 2]])
    assert len(lazy.made) == 2


def test_a_budget_is_rounded_from_the_same_codes_as_the_checkpoints_own(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.budget import budgets
    from cmt_core.evaluation.rounding import FLOAT16, with_bits

    own = tiny_cmt.config.bits_per_token
    windows = tiny_cmt.windows("", EXAMPLES[0].text)
    same, half = with_bits(tiny_cmt, own), with_bits(tiny_cmt, FLOAT16)
    assert [one.code for one in same.compress(windows)] == [one.code for one in tiny_cmt.compress(windows)]
    (exact,) = half.compress(windows)
    assert len(exact.code) == half.memory_bytes == 2 + tiny_cmt.config.window_tokens * 2 * tiny_cmt.config.code_width
    assert half.answer([EXAMPLES[0].question], [[exact.code]], max_new_tokens=2)
    points = budgets(tiny_cmt, EXAMPLES, [8, FLOAT16, own], questions=3, documents=6, k=2)
    assert [point.bits_per_token for point in points] == [FLOAT16, own, 8]
    assert [point.window_kb for point in points] == sorted((point.window_kb for point in points), reverse=True)
    with pytest.raises(ConfigError, match="bits"):
        with_bits(tiny_cmt, 8 * tiny_cmt.config.code_width + 8)


def test_fine_tuning_changes_the_copy_and_never_the_llm(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.forgetting import forgetting

    before = tiny_cmt.backbone.fingerprint()
    scores = forgetting(
        tiny_cmt,
        EXAMPLES,
        ["The capital of Norland is Varde."],
        documents=6,
        questions=3,
        epochs=2,
        rates=(1e-5, 1e-2),
        k=1,
    )
    assert [(row.system, row.epochs, row.llm_unchanged) for row in scores] == [
        ("closed_prefix", 0, True),
        ("stack", 0, True),
        ("fine-tuned at 1e-05", 1, False),
        ("fine-tuned at 1e-05", 2, False),
        ("fine-tuned at 0.01", 1, False),
        ("fine-tuned at 0.01", 2, False),
    ]
    before_tuning, memory, gently, _, roughly, _ = (row.other_text_nats for row in scores)
    assert before_tuning == memory
    assert abs(roughly - memory) > abs(gently - memory) > 0  # each rate starts from the LLM as it was
    assert tiny_cmt.backbone.fingerprint() == before


def test_experiment_is_written_as_table_json_and_plot(tiny_cmt: CMT, tmp_path: Path) -> None:
    from cmt_core.evaluation.experiments import retention

    points = retention(tiny_cmt, EXAMPLES, [3, 6], systems=("stack",), questions=2, k=1)
    paths = write_experiment(tmp_path / "out", "retention", points, x="x", y="f1", x_label="documents", about={"k": 1})
    assert {path.suffix for path in paths} >= {".md", ".json"}
    table = paths[0].read_text(encoding="utf-8")
    assert table.count("\n| ") == 3 + 1  # head, rule, two rows
    assert json.loads(paths[1].read_text(encoding="utf-8"))["points"][1]["documents"] == 6
    assert all(path.stat().st_size > 0 for path in paths)


def test_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    from cmt_core.evaluation.forgetting import ForgettingScores

    row = ForgettingScores("closed", 0, 0.0, 0.0, 1.0, True)
    with pytest.raises(ConfigError, match="can't be written"):
        write_experiment(tmp_path / "file" / "x", "f", [row], x="epochs", y="f1", x_label="", about={})


def test_markdown_table_leaves_missing_figures_empty() -> None:
    assert (
        markdown_table([{"system": "closed", "f1": 1.25, "oracle_f1": None, "answer_nats": 1.25}]).splitlines()[2]
        == "| closed | 1.2 |  | 1.250 |"
    )


def test_articles_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('{"id": "1", "title": "T", "text": "x"}\n\n{"id": "2", "text": "y"}\n{"id": 3, "text": "z"}\n')
    articles = read_articles(path)
    assert [next(articles), next(articles)] == [("1", "T", "x"), ("2", "", "y")]
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:4: id, title and text must be strings"):
        next(articles)

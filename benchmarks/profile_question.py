"""Where a question's time goes in-process: `make profile-question`, or python -m benchmarks.profile_question [--runs 9].

Every row is a part that a question waits for, without HTTP, Ray or the bank. Memories are fresh: what was decoded before is
forgotten for each first token. Medians; needs an idle machine to mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bars import machine_line
from benchmarks.profile_window import full_windows, median_ms
from cmt_core.generation.query import Query
from services.models import load_cmt
from services.settings import load_settings
from services.threads import use_all_cores

QUESTION = "How many people a week will the new ferry line of the council of Varde carry, and on which day was it said?"
SURE, UNSURE = (
    (0.9, 0.1, 0.1, 0.1),
    (0.52, 0.51, 0.5, 0.5),
)  # the retriever's scores: without and with reranking
_STEPS = 8


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    use_all_cores(spin=True)
    import torch

    cmt = load_cmt(load_settings())
    windows = full_windows(cmt, 4)
    memories = [one.code for one in cmt.compress(windows)]
    texts = [one.reading for one in windows]
    tokens = len(cmt.tokens.ids(QUESTION))
    print(machine_line(f"a question of {tokens} tokens, 4 memories of full windows, {cmt.backbone.dtype}"))

    def asked(mode: Any, k: int, scores: Sequence[float] = ()) -> Query:
        read = memories[:k] if mode == "memory" else ()
        passages = texts[:k] if mode == "rag" else ()
        return Query(QUESTION, mode, memories=read, scores=scores[:k] or None, passages=passages)

    def first(query: Query) -> float:
        def join() -> None:
            cmt.decoded = type(cmt.decoded)(2**28, cmt.config.window_tokens)
            cmt.answer_batch().join([query])

        return median_ms(join, options.runs)

    def further(query: Query) -> float:
        times: list[float] = []
        while len(times) < options.runs * _STEPS:  # an answer ends after a few
            batch = cmt.answer_batch()
            batch.join([query])
            new = True
            while new:
                started = time.perf_counter()
                new = bool(batch.step())
                times += [time.perf_counter() - started] if new else []
        return statistics.median(times) * 1e3

    table = {
        "query key": lambda: median_ms(lambda: cmt.query_keys([QUESTION]), options.runs),
        "decode 4 memories": lambda: median_ms(lambda: cmt.format.read(memories), options.runs),
        "closed: first token": lambda: first(asked("closed", 0)),
        "closed: each further token": lambda: further(asked("closed", 0)),
        "memory k=1: first token": lambda: first(asked("memory", 1, SURE)),
        "memory k=4, no likelihood looks": lambda: first(asked("memory", 4, SURE)),
        "memory k=4, with query-likelihood reranking": lambda: first(asked("memory", 4, UNSURE)),
        "memory k=4: each further token": lambda: further(asked("memory", 4, SURE)),
        "text k=4: first token": lambda: first(asked("rag", 4)),
    }
    with torch.inference_mode():
        for name, measure in table.items():
            print(f"{name:36} {measure():9.1f} ms", flush=True)


if __name__ == "__main__":
    main()

"""The hook of vLLM's model runner V2, which wants a GPU: by its interface, on tensors that stand where the runner keeps them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from cmt_core.errors import ModelSourceError
from cmt_core.llm.folder import LLMFolder
from cmt_core.llm.model_source import resolve_model
from cmt_core.llm.tokens import Tokens
from cmt_core.shipped import CACHE_DIR, LLM
from cmt_core.vllm_engine.placeholders import SPELLED_KEY
from cmt_core.vllm_engine.spelling_v2 import SpellingProcessorV2

TEXT = "Mayor Lund opened the bridge in Aarhus on Monday."
SLOTS, LONGEST = 4, 16


@pytest.fixture(scope="module")
def llm() -> Path:
    try:
        return resolve_model(LLM, CACHE_DIR.expanduser())
    except ModelSourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokens(llm: Path) -> Tokens:
    return Tokens(LLMFolder.load(llm))


class Runner:
    """Slots with prompts and what is written behind them, as `LogitsProcRequestState` shows them to a hook."""

    def __init__(self, llm: Path) -> None:
        self.ids = torch.zeros(SLOTS, LONGEST, dtype=torch.int32)
        self.prompt, self.total = np.zeros(SLOTS, dtype=np.int32), torch.zeros(SLOTS, dtype=torch.int32)
        states = SimpleNamespace(
            device=torch.device("cpu"),
            prompt_len=SimpleNamespace(np=self.prompt),
            total_len=SimpleNamespace(gpu=self.total),
            all_token_ids=SimpleNamespace(gpu=self.ids),
        )
        self.hook = SpellingProcessorV2(SimpleNamespace(model_config=SimpleNamespace(model=str(llm))), states)

    def add(self, slot: int, prompt: list[int], written: list[int], params: SamplingParams) -> bool:
        """A request comes into a slot."""
        self.ids[slot] = 0
        self.ids[slot, : len(prompt) + len(written)] = torch.tensor([*prompt, *written])
        self.prompt[slot], self.total[slot] = len(prompt), len(prompt) + len(written)
        return self.hook.add_request(slot, params)

    def best(self, slots: list[int], logits: torch.Tensor) -> list[int]:
        """What greedy sampling takes for requests that stand in these slots, in this order."""
        layout = SimpleNamespace(idx_mapping_np=np.array(slots))
        return self.hook.apply(logits, layout).argmax(dim=-1).tolist()


def params(*texts: str, temperature: float = 0.0) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, stop_token_ids=[0], extra_args={SPELLED_KEY: list(texts)} if texts else None
    )


def wanting(tokens: Tokens, *best_first: str) -> torch.Tensor:
    logits = torch.full((49152,), -9.0)
    for rank, text in enumerate(best_first):
        logits[tokens.ids(text)[0]] = 9.0 - rank
    return logits


def test_each_slot_goes_on_with_what_is_written_in_it(llm: Path, tokens: Tokens) -> None:
    runner = Runner(llm)
    assert runner.add(2, [5, 6, 7], tokens.ids("opened the"), params(TEXT))
    assert not runner.add(0, [5], [], params())
    assert runner.add(1, [5, 6], [], params(TEXT))
    logits = torch.stack(
        [wanting(tokens, " tunnel", " bridge"), wanting(tokens, " tunnel"), wanting(tokens, "Bob", "May")]
    )
    firsts = [tokens.ids(text)[0] for text in (" bridge", " tunnel", "May")]
    assert runner.best([2, 0, 1], logits) == firsts


def test_a_slot_forgets_whose_it_was(llm: Path, tokens: Tokens) -> None:
    runner = Runner(llm)
    runner.add(3, [5], [], params(TEXT))
    runner.add(3, [5], [], params())
    assert runner.best([3], wanting(tokens, " tunnel", "May")[None]) == tokens.ids(" tunnel")[:1]


def test_draws_are_among_what_fits(llm: Path, tokens: Tokens) -> None:
    runner = Runner(llm)
    runner.add(0, [5], tokens.ids("opened the"), params(TEXT, temperature=1.0))
    logits = wanting(tokens, " tunnel", " bridge", " bri", " whale")[None]
    kept = runner.hook.apply(logits, SimpleNamespace(idx_mapping_np=np.array([0])))[0]
    left = {tokens.text([id]) for id in (kept > -torch.inf).nonzero().flatten().tolist()}
    assert " bridge" in left
    assert not left & {" tunnel", " whale"}


def test_what_are_no_texts_is_refused_before_it_runs() -> None:
    with pytest.raises(ValueError, match="list of texts"):
        SpellingProcessorV2.validate_params(SamplingParams(extra_args={SPELLED_KEY: "one text"}))

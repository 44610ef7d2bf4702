"""Configuration of a memory checkpoint, and the dimension letters used in all of cmt_core.

B batch (rows), T tokens of a document window, Q tokens of the questions, p tokens of a prefix, k documents in one context,
S context positions (p + k * T), D width of the LLM, L layers, H key/value heads, d width of one head,
m memory vectors of a document (`soft_tokens`), c context vectors given to the LLM (`select`, `single_context`),
X = L * 2 * H * d numbers of all layers' keys and values for one token, C components of a code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cmt_core.errors import ConfigError, MemoryFormatError

__all__ = ["MIN_EVIDENCE", "MemoryConfig"]

MIN_EVIDENCE = 0.25
"""What must stand above the least cosine of a relevant memory: closeness of the question's words, or more cosine
(retrieval/evidence.py)."""


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """What a checkpoint's memories are; travels as config.json beside the weights.

    `method` is Θ: `kv_code` (a short code of every token's keys and values) or `soft_tokens` (the paper's: `memory_vectors`
    vectors of the LLM's width `memory_width`, from cross-attention started at `soft_start` over the hidden states that the LLM
    has after the share `source_depth` of its layers; 1 are the last).
    `aggregation` is ψ: `stack`, `select` (kv_code) or `single_context` (soft_tokens). `alignment` is π: `decoder` (kv_code),
    `low_rank` or `linear` (soft_tokens). `context_vectors` (c) is how many vectors `select` and `single_context` give the LLM.
    `bits_per_token` bits a token are shared out over `code_width` components by variance, those of
    `block_tokens` tokens in a row together; with `code_storage` entropy they follow what is seldom, not only what varies
    (memory/entropy_codes.py), and float16 keeps the components unrounded, for research.
    `objective` mixes the LLM's own logits in, in training and decoding, with `objective_weight` a: see `decoding_weight`.
    `matching` is self-matching, with its weights. `likelihood_weight` is how much a nat of the question's log-likelihood behind
    a memory adds to the log-prior of ψ `select`; 0 goes by the retriever alone. `prior_temperature` is that of the softmax over
    the retriever's scores, `min_score` the least cosine of a relevant memory. With `look_layer`
    the documents found are weighed by a learned look at what that layer gets (retrieval/looks.py), and by the likelihood alone
    where there are no scores or no states; 0 has no such look.
    `reading` says what stands around memories: `prefix`, a learned prefix, or `chat`, the LLM's own chat template with
    `instruction` before them.
    Raises ConfigError on unknown keys and on parts that don't combine.
    """

    method: str = "kv_code"
    window_tokens: int = 256
    prefix_tokens: int = 24
    code_width: int = 320
    bits_per_token: int = 1152
    top_k: int = 1
    aggregation: str = "stack"
    context_vectors: int = 256
    format_version: int = 1
    alignment: str = "decoder"
    alignment_rank: int = 64
    memory_vectors: int = 16
    memory_width: int = 0
    soft_start: str = "salient"
    source_depth: float = 0.6
    compressor_blocks: int = 2
    objective: str = "plain"
    objective_weight: float = 0.5
    matching: str = "none"
    matching_weight: float = 0.1
    uniformity_weight: float = 1.0
    code_storage: str = "packed"
    block_tokens: int = 1
    likelihood_weight: float = 0.37
    reading: str = "prefix"
    instruction: str = ""
    prior_temperature: float = 0.1
    min_score: float = 0.3
    look_layer: int = 0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not known ({', '.join(known)} are)")
        _check_combination(self)
        if self.aggregation == "select" and self.context_vectors < 32:
            raise ConfigError(f"context_vectors {self.context_vectors} is less than one block of 32")
        if self.likelihood_weight < 0:
            raise ConfigError(f"likelihood_weight {self.likelihood_weight:g} is below 0")
        if self.look_layer < 0:
            raise ConfigError(f"look_layer {self.look_layer} is no layer")
        if self.prior_temperature <= 0:
            raise ConfigError(f"prior_temperature {self.prior_temperature:g} is not above 0")
        if self.reading == "chat" and not self.instruction:
            raise ConfigError("reading chat needs the instruction that memories were written behind")
        if self.window_tokens < 32 or self.prefix_tokens < 1 or self.code_width < 1 or self.top_k < 1:
            raise ConfigError("window_tokens must be at least 32; prefix_tokens, code_width and top_k at least 1")
        if self.bits_per_token % 8:
            raise ConfigError(f"bits_per_token {self.bits_per_token} is not a whole number of bytes")
        if not 8 <= self.bits_per_token <= 8 * self.code_width:
            raise ConfigError(
                f"{self.code_width} components hold 8 to {8 * self.code_width} bits, not {self.bits_per_token}"
            )
        if not 1 <= self.block_tokens <= self.window_tokens or self.window_tokens % self.block_tokens:
            raise ConfigError(
                f"block_tokens {self.block_tokens} does not divide the window's {self.window_tokens} tokens"
            )
        if self.block_tokens > 1 and self.code_storage != "entropy":
            raise ConfigError(f"code_storage {self.code_storage} keeps every token's own code: block_tokens is 1 then")
        if self.format_version != 1:
            raise ConfigError(f"format_version {self.format_version} is not known (1 is)")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's packed code (`kv_code`)."""
        return 2 * self.code_width if self.code_storage == "float16" else self.bits_per_token // 8

    @property
    def code_size(self) -> tuple[int, int, int, str]:
        """What a code of another configuration must share to be read as one of this."""
        return self.code_width, self.bits_per_token, self.block_tokens, self.code_storage

    def code_bytes(self, n_tokens: int) -> int:
        """Bytes of the packed codes of so many tokens (`kv_code`): those of whole blocks."""
        return -(-n_tokens // self.block_tokens) * self.block_tokens * self.token_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of one window's packed memory.

        `kv_code`: a 2-byte token count, then codes; shorter windows are padded. `soft_tokens`: m vectors in float16.
        """
        if self.method == "soft_tokens":
            return self.memory_vectors * self.memory_width * 2
        return 2 + self.window_tokens * self.token_bytes

    def tokens_of(self, memory: bytes) -> int:
        """How many vectors a packed memory holds, one a token of `kv_code`. Raises MemoryFormatError for another layout."""
        if self.method == "soft_tokens":
            if len(memory) != self.memory_bytes:
                raise MemoryFormatError(f"a memory of {len(memory)} bytes is not of this checkpoint")
            return self.memory_vectors
        n_tokens = int.from_bytes(memory[:2], "little")
        if len(memory) != self.memory_bytes or not 0 < n_tokens <= self.window_tokens:
            raise MemoryFormatError(f"a memory of {len(memory)} bytes and {n_tokens} tokens is not of this checkpoint")
        return n_tokens

    @property
    def slot_tokens(self) -> int:
        """Positions that one document takes in a context of `stack`."""
        return self.memory_vectors if self.method == "soft_tokens" else self.window_tokens

    @property
    def decoding_weight(self) -> float:
        """w of w * z_mem + (1 - w) * z_plain, next-token logits with and without the memory.

        `contrast` is (1 + a) z_mem - a z_plain, `mix` is a z_mem + (1 - a) z_plain; w = 1 is plain.
        Source: the memory-aware objective of CMT (arXiv 2412.07393).
        """
        return {"plain": 1.0, "contrast": 1.0 + self.objective_weight, "mix": self.objective_weight}[self.objective]

    def to_dict(self) -> dict[str, Any]:
        """The plain form that `from_dict` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryConfig:
        """Reads the plain form; an unknown key raises ConfigError."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown configuration key {sorted(unknown)[0]!r}")
        return cls(**values)


_CHOICES = {
    "method": ("kv_code", "soft_tokens"),
    "aggregation": ("stack", "select", "single_context"),
    "alignment": ("decoder", "low_rank", "linear"),
    "soft_start": ("salient", "learned"),
    "objective": ("plain", "contrast", "mix"),
    "matching": ("none", "cosine", "infonce"),
    "code_storage": ("packed", "entropy", "float16"),
    "reading": ("prefix", "chat"),
}


def _check_combination(config: MemoryConfig) -> None:
    """Raises ConfigError for parts that don't go together."""
    if config.method == "kv_code":
        if config.alignment != "decoder":
            raise ConfigError(f"kv_code is read by its own decoder; alignment {config.alignment!r} is for soft_tokens")
        if config.aggregation == "single_context":
            raise ConfigError("single_context attends to soft_tokens; kv_code goes with stack or select")
        if config.matching != "none":
            raise ConfigError("self-matching shapes soft_tokens; kv_code is found by the frozen retriever's key")
    else:
        if config.alignment == "decoder":
            raise ConfigError("soft_tokens need alignment low_rank or linear; the decoder reads kv_code")
        if config.aggregation == "select":
            raise ConfigError("select keeps tokens of kv_code; soft_tokens go with stack or single_context")
        if min(config.memory_vectors, config.memory_width, config.compressor_blocks, config.alignment_rank) < 1:
            raise ConfigError(
                "soft_tokens need memory_vectors, memory_width (the LLM's), compressor_blocks and alignment_rank of at least 1"
            )
        if not 0 < config.source_depth <= 1:
            raise ConfigError(
                f"source_depth {config.source_depth} is no share of the LLM's layers (above 0, at most 1)"
            )
        if config.aggregation == "single_context" and config.context_vectors < 1:
            raise ConfigError("single_context needs at least 1 of context_vectors")
    if config.objective == "mix" and not 0 < config.objective_weight <= 1:
        raise ConfigError(f"objective mix needs a weight above 0 and at most 1, not {config.objective_weight}")
    if config.objective == "contrast" and config.objective_weight < 0:
        raise ConfigError(f"objective contrast needs a weight of at least 0, not {config.objective_weight}")

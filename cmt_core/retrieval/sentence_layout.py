"""How a sentence encoder wants to be used, from the files of sentence-transformers in its folder.

`modules.json` lists what follows the transformer: pooling, dense layers, normalisation. `config_sentence_transformers.json` has
the prompts that stand before queries and documents. A folder without them is a plain transformer: means over all tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmt_core.errors import ModelSourceError, UnsupportedModelError, one_line

__all__ = ["PLAIN", "SentenceLayout", "pooled", "read_dense", "read_layout"]

_POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean over root",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weighted mean",
}
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")
_LONGEST = 512  # tokens: a window of the LLM's is shorter


@dataclass(frozen=True, slots=True)
class SentenceLayout:
    """What is done with the transformer's last hidden states, in order, and what stands before a text."""

    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[str, ...] = ()  # folders of dense layers, below the encoder's
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int = 256
    width: int | None = None  # to which keys are cut

    @property
    def suffix(self) -> str:
        """What the layout adds to the encoder's fingerprint: nothing for a plain one, whose keys its weights decide alone."""
        return "" if self == PLAIN else hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


PLAIN = SentenceLayout()


def read_layout(folder: Path) -> SentenceLayout:
    """The layout of an encoder's folder.

    Raises ModelSourceError for files that can't be read, UnsupportedModelError for parts that are not known here.
    """
    modules = _json(folder / "modules.json") or []
    about = _json(folder / "config_sentence_transformers.json") or {}
    sizes = _json(folder / "sentence_bert_config.json") or {}
    if about.get("similarity_fn_name") in ("dot", "euclidean", "manhattan"):
        raise UnsupportedModelError(
            f"the encoder compares by {about['similarity_fn_name']}, and a bank's search by cosine: take one made for cosine"
        )
    kinds = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in modules]
    unknown = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown:
        raise UnsupportedModelError(
            f"the encoder has a part {unknown[0]!r} that can't be read here: known are pooling, dense layers, normalisation"
        )
    pooling = next((_pooling(folder / path) for kind, path in kinds if kind == "Pooling"), ("mean",))
    prompts = about.get("prompts") or {}
    default = prompts.get(about.get("default_prompt_name") or "", "")
    return SentenceLayout(
        pooling=pooling,
        dense=tuple(path for kind, path in kinds if kind == "Dense"),
        query_prompt=_prompt(prompts, _QUERY, default),
        document_prompt=_prompt(prompts, _DOCUMENT, default),
        max_tokens=min(int(sizes.get("max_seq_length") or PLAIN.max_tokens), _LONGEST),
        width=about.get("truncate_dim"),
    )


def read_dense(folder: Path, layout: SentenceLayout) -> list[nn.Sequential]:
    """The layout's dense layers with their activations; raises ModelSourceError or UnsupportedModelError."""
    return [_dense(folder / path) for path in layout.dense]


def pooled(hidden: Tensor, mask: Tensor, pooling: tuple[str, ...]) -> Tensor:
    """Sentence vectors (N, D times the poolings) of hidden states (N, T, D) whose tokens `mask` (N, T) marks."""
    weights = mask[..., None].to(hidden.dtype)
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)[:, None]
    counts = weights.sum(dim=1).clamp_min(1e-9)
    last = mask.sum(dim=1).sub(1).clamp_min(0)
    kinds: dict[str, Callable[[], Tensor]] = {
        "first": lambda: hidden[:, 0],
        "mean": lambda: (hidden * weights).sum(dim=1) / counts,
        "max": lambda: hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1),
        "mean over root": lambda: (hidden * weights).sum(dim=1) / counts.sqrt(),
        "last": lambda: hidden[torch.arange(len(hidden), device=hidden.device), last],
        "weighted mean": lambda: (hidden * weights * places).sum(dim=1) / (weights * places).sum(dim=1).clamp_min(1e-9),
    }
    return torch.cat([kinds[kind]() for kind in pooling], dim=-1)


def _pooling(folder: Path) -> tuple[str, ...]:
    described = _json(folder / "config.json") or {}
    named = described.get("pooling_mode")  # newer files name it
    if isinstance(named, str):
        by_name = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last", "weightedmean": "weighted mean"}
        by_name["mean_sqrt_len_tokens"] = "mean over root"
        if named not in by_name:
            raise UnsupportedModelError(f"the encoder's pooling {named!r} can't be read here")
        return (by_name[named],)
    chosen = tuple(kind for key, kind in _POOLINGS.items() if described.get(key))
    if not chosen:
        raise UnsupportedModelError(f"the encoder's {folder.name} names no pooling")
    if described.get("include_prompt") is False:
        raise UnsupportedModelError("the encoder leaves its prompt out of the pooling, which can't be done here")
    return chosen


def _prompt(prompts: dict[str, str], names: tuple[str, ...], default: str) -> str:
    return str(next((prompts[name] for name in names if name in prompts), default) or "")


def _dense(folder: Path) -> nn.Sequential:
    described = _json(folder / "config.json") or {}
    try:
        weights = load_file(folder / "model.safetensors")
        matrix = weights["linear.weight"]
        activation = str(described.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelSourceError(f"the encoder's {folder.name} can't be loaded: {one_line(error)}") from None
    known: dict[str, type[nn.Module]] = {
        one.__name__: one for one in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
    }
    if activation not in known:
        raise UnsupportedModelError(f"the encoder's activation {activation!r} can't be read here")
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias="linear.bias" in weights)
    linear.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
    return nn.Sequential(linear, known[activation]()).eval().requires_grad_(False)


def _json(path: Path) -> Any:
    """What a file holds, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path.name} of the encoder can't be read: {one_line(error)}") from None

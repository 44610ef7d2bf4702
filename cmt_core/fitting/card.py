"""The model card of a fitted checkpoint: what it is, what it was fitted on, and what it was measured to keep."""

from __future__ import annotations

from cmt_core.checkpoint import Checkpoint

__all__ = ["card"]


def card(checkpoint: Checkpoint, name: str) -> str:
    """Markdown for the checkpoint's folder `name`, from what its fit has written down."""
    training = checkpoint.training
    fidelity = training["fidelity"]
    rows = "\n".join(f"| {what} | {value} |" for what, value in _rows(checkpoint).items())
    return f"""# {name}

Memory parts for the frozen LLM `{training["llm"]}`, fitted without training anything: no weight of the LLM, and no parameter
of the memory, has had a gradient step. Only this LLM's weights can read these memories.

| | |
|---|---|
{rows}

## Fidelity
Log-loss in nats a token of the LLM's own answers (the given ones, where questions were given) on {fidelity["windows"]} windows
that the fit did not read: {fidelity["exact_nats"]:.3f} with the exact document, {fidelity["coded_nats"]:.3f} with its memory,
{fidelity["closed_nats"]:.3f} without any document. The memory keeps **{fidelity["gap_kept"]:.0%}** of what the document tells.

## Limits
- This is the fit's own measurement, on few windows of its own kind of text: measure on yours with `cmt eval`.
- More bytes a token keep more (`cmt fit --bytes`).
- Reads only what this very checkpoint wrote: `model_id` in the bank keeps the two together.
"""


def _rows(checkpoint: Checkpoint) -> dict[str, str]:
    memory, training = checkpoint.config, checkpoint.training
    found = training["calibration"]
    return {
        "method": f"`kv_code`: {memory.code_width} numbers a token, rounded to {memory.bits_per_token} bits "
        f"({memory.token_bytes} bytes; the exact keys and values are {2 * checkpoint.shape.width:,} bytes in bfloat16)",
        "memory of a window": f"{memory.memory_bytes:,} bytes for {memory.window_tokens} tokens",
        "reading": "`chat`: memories stand in the LLM's own chat template, behind "
        f"{memory.prefix_tokens} tokens of it that are the same for every request",
        "LLM fingerprint": f"`{checkpoint.llm_fingerprint}` (sha256 over its bfloat16 weights)",
        "retriever": f"`{training['retriever']}`, frozen",
        "code": "PCA in the metric of the answers' gradient, "
        f"{memory.block_tokens} tokens in a row turned together, levels coded close to their entropy",
        "fitted on": f"{training['windows']} windows, {training['sample_tokens']:,} tokens, of {training['texts']}; "
        f"{training['asked']} questions for the gradient",
        "calibrated": f"ψ's temperature {found['prior_temperature']:g}, likelihood weight "
        f"{found['likelihood_weight']:g}, relevance threshold {found['min_score']:g}",
        "took": f"{training['seconds']:,.0f} s, {training['cpu_seconds']:,.0f} s of CPU",
    }

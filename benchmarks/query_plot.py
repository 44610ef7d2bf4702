"""Draws the query benchmark as one SVG: time to first token and answers a second by mode and clients, memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["plot"]

_COLOURS = {"memory": "#0f6e66", "rag": "#b7791f", "closed": "#7a818a"}
_WIDTH, _HEIGHT, _LEFT = 720, 250, 120


def plot(result: dict[str, Any]) -> str:
    """The SVG of a result as `benchmarks.query` writes it."""
    figures = result["figures"]
    parts = [
        _chart("time to first token (s, median)", [(_label(f), f["first_token_p50_s"], f["mode"]) for f in figures], 0),
        _chart("answers a second", [(_label(f), f["answers_per_s"], f["mode"]) for f in figures], 1),
    ]
    panels = 2
    if result["steady"]:
        parts.append(_line(result["steady"]["rss_bytes"], panels))
        panels += 1
    style = "text{font:11px system-ui,sans-serif;fill:#5b626b}.h{font-size:13px;font-weight:600;fill:#1c1f23}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {panels * _HEIGHT + 10}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _label(figure: dict[str, Any]) -> str:
    k = f" k={figure['k']}" if figure["mode"] != "closed" else ""
    return f"{figure['mode']}{k}, {figure['clients']}"


def _chart(title: str, bars: Sequence[tuple[str, float, str]], panel: int) -> str:
    top = panel * _HEIGHT
    most = max(value for _, value, _ in bars)
    step = (_HEIGHT - 40) / len(bars)
    out = [f'<text class="h" x="10" y="{top + 20}">{title}, by mode and clients</text>']
    for row, (label, value, mode) in enumerate(bars):
        y = top + 30 + row * step
        width = (_WIDTH - _LEFT - 70) * value / most
        out.append(f'<text x="{_LEFT - 8}" y="{y + step - 3:.1f}" text-anchor="end">{label}</text>')
        out.append(
            f'<rect x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="{step - 3:.1f}" fill="{_COLOURS[mode]}"/>'
        )
        out.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + step - 3:.1f}">{value:.3g}</text>')
    return "".join(out)


def _line(samples: Sequence[Sequence[float]], panel: int) -> str:
    top = panel * _HEIGHT
    end, most = samples[-1][0] or 1.0, max(size for _, size in samples)
    points = " ".join(
        f"{_LEFT + (_WIDTH - _LEFT - 70) * at / end:.1f},{top + _HEIGHT - 25 - (_HEIGHT - 65) * size / most:.1f}"
        for at, size in samples
    )
    title = f"the replica's memory over {end / 60:.0f} minutes at 80% load (GB, from 0)"
    return (
        f'<text class="h" x="10" y="{top + 20}">{title}</text>'
        f'<text x="{_LEFT - 8}" y="{top + 45}" text-anchor="end">{most / 1e9:.2f}</text>'
        f'<text x="{_LEFT - 8}" y="{top + _HEIGHT - 22}" text-anchor="end">0</text>'
        f'<polyline points="{points}" fill="none" stroke="{_COLOURS["memory"]}" stroke-width="2"/>'
    )

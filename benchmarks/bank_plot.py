"""Draws the bank's benchmark as one SVG: upserts a second and search times against rows, bytes a row by encoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["plot"]

_COLOURS = ("#0f6e66", "#b7791f", "#7a818a", "#1c1f23")
_WIDTH, _HEIGHT, _LEFT, _RIGHT = 720, 250, 60, 210
_Line = tuple[str, Sequence[tuple[float, float]], str, bool]  # label, points, colour, dashed


def plot(sizes: Sequence[Mapping[str, Any]], row_bytes: Mapping[str, float]) -> str:
    """The SVG of what `benchmarks.bank` measured at each size, and the bytes of a row by the memory's encoding."""
    payloads = list(dict.fromkeys(size["payload_bytes"] for size in sizes))
    upserts: list[_Line] = []
    searches: list[_Line] = []
    for payload, colour in zip(payloads, _COLOURS, strict=False):
        own = sorted((size for size in sizes if size["payload_bytes"] == payload), key=lambda size: int(size["rows"]))
        label = f"{payload / 1024:.0f} kB a memory"
        upserts.append((label, [(one["rows"], one["upsert_rows_s"]) for one in own], colour, False))
        searches.append((f"p50, {label}", [(one["rows"], one["search_p50_ms"]) for one in own], colour, False))
        searches.append((f"p99, {label}", [(one["rows"], one["search_p99_ms"]) for one in own], colour, True))
    parts = [
        _lines("upserts (rows a second), by rows of the bank", upserts, 0),
        _lines("search by key (ms), by rows of the bank", searches, 1),
        _bars("bytes a row, by encoding of the memory", row_bytes, 2),
    ]
    style = "text{font:11px system-ui,sans-serif;fill:#5b626b}.h{font-size:13px;font-weight:600;fill:#1c1f23}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {len(parts) * _HEIGHT + 10}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _lines(title: str, lines: Sequence[_Line], panel: int) -> str:
    """Lines over rows on a logarithmic axis, values from 0."""
    top = panel * _HEIGHT
    bottom, height, width = top + _HEIGHT - 30, _HEIGHT - 70, _WIDTH - _LEFT - _RIGHT
    ticks = sorted({rows for _, points, _, _ in lines for rows, _ in points})
    most = max(value for _, points, _, _ in lines for _, value in points)
    first, span = math.log(ticks[0]), math.log(ticks[-1] / ticks[0]) or 1.0

    def at(rows: float, value: float) -> tuple[float, float]:
        return _LEFT + width * (math.log(rows) - first) / span, bottom - height * value / most

    out = [f'<text class="h" x="10" y="{top + 20}">{title}</text>']
    out.append(f'<line x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + width}" y2="{bottom}" stroke="#d5d9de"/>')
    out += [f'<text x="{at(rows, 0)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{rows:,}</text>' for rows in ticks]
    for number, (label, points, colour, dashed) in enumerate(lines):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        lift = (
            -6 if dashed or len(lines) == len({one[2] for one in lines}) else 15
        )  # of two lines, the lower's is below
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for point in points:
            x, y = at(*point)
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            out.append(f'<text x="{x:.1f}" y="{y + lift:.1f}" text-anchor="middle">{point[1]:,.4g}</text>')
        key = top + 45 + 18 * number
        left = _WIDTH - _RIGHT + 30
        out.append(
            f'<line x1="{left}" y1="{key}" x2="{left + 20}" y2="{key}" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        out.append(f'<text x="{left + 25}" y="{key + 4}">{label}</text>')
    return "".join(out)


def _bars(title: str, values: Mapping[str, float], panel: int) -> str:
    top, left = panel * _HEIGHT, 230
    most = max(values.values())
    step = (_HEIGHT - 60) / len(values)
    out = [f'<text class="h" x="10" y="{top + 20}">{title}</text>']
    for row, (label, value) in enumerate(values.items()):
        y = top + 35 + row * step
        width = (_WIDTH - left - 80) * value / most
        out.append(f'<text x="{left - 8}" y="{y + step / 2:.1f}" text-anchor="end">{label}</text>')
        out.append(
            f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{step - 8:.1f}" fill="{_COLOURS[row == 0]}"/>'
        )
        out.append(f'<text x="{left + width + 6:.1f}" y="{y + step / 2:.1f}">{value:,.0f}</text>')
    return "".join(out)

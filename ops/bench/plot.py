"""Two plain plots as SVG: bars against their targets, and one line. No library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from attrs import frozen

ROW, LABEL, BAR, MOST = 26, 420, 360, 2.0
GOOD, SHORT, TEXT = "#2e7d32", "#c62828", "#555"


@frozen
class Bar:
    """One figure and the limit it is held against."""

    name: str
    value: float
    at_least: float | None
    at_most: float | None

    @property
    def share(self) -> float:
        """1 is the target; more is better."""
        if self.at_least is not None:
            return self.value / self.at_least
        return (self.at_most or 0.0) / self.value if self.value > 0 else MOST


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A bar per figure, the target a line; cut at twice the target."""
    parts = []
    for place, bar in enumerate(rows):
        y, share = 40 + place * ROW, min(MOST, bar.share)
        colour = GOOD if bar.share >= 1 else SHORT
        parts.append(_text(LABEL - 8, y + 14, bar.name, anchor="end"))
        parts.append(f'<rect x="{LABEL}" y="{y}" width="{share / MOST * BAR:.0f}" height="{ROW - 8}" fill="{colour}"/>')
        parts.append(_text(LABEL + share / MOST * BAR + 6, y + 14, f"{bar.value:.3g}"))
    middle, bottom = LABEL + BAR / MOST, 40 + len(rows) * ROW
    parts.append(
        f'<line x1="{middle:.0f}" y1="34" x2="{middle:.0f}" y2="{bottom}" stroke="{TEXT}" stroke-dasharray="4"/>'
    )
    return _svg(title, LABEL + BAR + 80, bottom + 10, parts)


def line(title: str, points: Mapping[int, float]) -> str:
    """Values by percent, from zero up."""
    top = max(points.values()) * 1.1
    places = [(60 + x * 6, 300 - value / top * 250) for x, value in sorted(points.items())]
    path = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{GOOD}" stroke-width="2"/>']
    parts += [
        _text(x, y - 6, f"{value:.0f}") for (x, y), (_, value) in zip(places, sorted(points.items()), strict=True)
    ]
    parts += [_text(60 + x * 6, 318, f"{x} %") for x in sorted(points)]
    return _svg(title, 720, 330, parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{TEXT}">{escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join([_text(10, 20, title), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )

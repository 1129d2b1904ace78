"""Small charts as SVG text: no drawing library is needed to look at a handful of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 64, 150, 36, 34
_COLORS = ("#1f6fb4", "#d1622b", "#3a8f4d", "#8a56ac", "#b0a02c", "#5b6770")


def page(charts: Sequence[str]) -> str:
    """Charts below each other as one SVG file."""
    height = _HEIGHT * len(charts)
    body = "".join(f'<g transform="translate(0 {number * _HEIGHT})">{chart}</g>' for number, chart in enumerate(charts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def lines(title: str, x_label: str, series: Mapping[str, Sequence[float]], *, logarithmic: bool = False) -> str:
    """A chart of lines over 0, 1, 2, ...; on a logarithmic scale what is not above zero is left out.

    What is infinite or no number has no place on the scale: a cross at the upper edge stands for it.
    """
    shown = {
        name: [
            (index, math.log10(value) if logarithmic else value)
            for index, value in enumerate(values)
            if math.isfinite(value) and (value > 0 or not logarithmic)
        ]
        for name, values in series.items()
    }
    beyond = {
        name: [index for index, value in enumerate(values) if not math.isfinite(value)]
        for name, values in series.items()
    }
    points = [point for found in shown.values() for point in found]
    if not points and not any(beyond.values()):
        return _frame(title, x_label) + _text(_WIDTH / 2, _HEIGHT / 2, "nothing to show")
    most = max(1, *(index for index, _ in points), *(index for found in beyond.values() for index in found))
    low, high = _range([value for _, value in points] or [0.0], logarithmic=logarithmic)
    parts = [_frame(title, x_label), *_scale(low, high, logarithmic=logarithmic)]
    parts += [_text(_x(index / most), _HEIGHT - _BOTTOM + 15, str(index)) for index in sorted({0, most})]
    for number, (name, found) in enumerate(shown.items()):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(f"{_x(index / most):.1f},{_y((value - low) / (high - low)):.1f}" for index, value in found)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(found) == 1:  # a line of one point shows nothing
            x, _, y = path.partition(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>')
        parts += [_cross(_x(index / most), color) for index in beyond[name]]
        parts += [_legend(number, name, color)]
    if any(beyond.values()):
        parts.append(_legend_text(len(shown), "x: infinite"))
    return "".join(parts)


def bars(title: str, values: Mapping[str, tuple[float, float, float]]) -> str:
    """Horizontal bars; each value is a median with the lowest and the highest one, which a thin line shows."""
    most = max((high for _, _, high in values.values()), default=0.0) or 1.0
    left, width = 190, _WIDTH - 190 - 90
    step = min(26.0, (_HEIGHT - _TOP - 10) / max(1, len(values)))
    parts = [f'<text x="12" y="20" font-weight="bold">{escape(title)}</text>']
    for number, (name, (median, low, high)) in enumerate(values.items()):
        top = _TOP + number * step
        color = _COLORS[0] if number == 0 else _COLORS[5]
        middle = top + step * 0.36
        parts += [
            f'<text x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{top:.1f}" width="{width * median / most:.1f}" height="{step * 0.72:.1f}" fill="{color}"/>',
            f'<path d="M{left + width * low / most:.1f} {middle:.1f}H{left + width * high / most:.1f}" stroke="black"/>',
            f'<text x="{left + width * high / most + 6:.1f}" y="{middle + 4:.1f}">{median:.3g}</text>',
        ]
    return "".join(parts)


def _frame(title: str, x_label: str) -> str:
    return (
        f'<text x="12" y="20" font-weight="bold">{escape(title)}</text>'
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="black"/>'
        + _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label)
    )


def _range(values: Sequence[float], *, logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        low, high = math.floor(low), math.ceil(high)
    elif low > 0:
        low = 0.0
    return (low, high) if high > low else (low, low + 1)


def _scale(low: float, high: float, *, logarithmic: bool) -> list[str]:
    # Powers of ten on a logarithmic scale, a few of them.
    step = max(1, math.ceil((high - low) / 6)) if logarithmic else (high - low) / 4
    parts = []
    for number in range(math.floor((high - low) / step + 1e-9) + 1):
        value = low + step * number
        y = _y((value - low) / (high - low))
        told = f"1e{value:.3g}" if logarithmic else f"{value:.3g}"
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{told}</text>')
    return parts


def _legend(number: int, name: str, color: str) -> str:
    x, y = _WIDTH - _RIGHT + 12, _TOP + 10 + 18 * number
    return f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{color}"/>' + _legend_text(number, name)


def _legend_text(number: int, text: str) -> str:
    return f'<text x="{_WIDTH - _RIGHT + 28}" y="{_TOP + 10 + 18 * number}">{escape(text)}</text>'


def _cross(x: float, color: str) -> str:
    return f'<path d="M{x - 3:.1f} {_TOP - 3}l6 6m0 -6l-6 6" stroke="{color}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _RIGHT - _LEFT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

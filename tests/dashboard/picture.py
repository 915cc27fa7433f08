"""The picture: panels as Grafana lays them out, drawn as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from tests.dashboard.answers import Line, shown

_COLUMN, _ROW, _GAP = 50, 30, 6
_COLOURS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0")
_STEPS = {"green": "#56a64b", "orange": "#ff9830", "red": "#e02f44"}
_LEGENDS = 6
"""So many have room below a chart."""


def picture(panels: list[dict[str, Any]], answers: Mapping[int, list[Line]]) -> str:
    """SVG.

    Args:
        answers: by id of the panel.
    """
    height = max(place["y"] + place["h"] for place in (panel["gridPos"] for panel in panels))
    size = f"{24 * _COLUMN} {height * _ROW}"
    body = "".join("".join(_panel(panel, answers.get(panel["id"], []))) for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#f4f5f5"/>{body}</svg>\n'
    )


def _panel(panel: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    place = panel["gridPos"]
    x, y = place["x"] * _COLUMN, place["y"] * _ROW
    width, height = place["w"] * _COLUMN - _GAP, place["h"] * _ROW - _GAP
    yield f'<g transform="translate({x} {y})">'
    if panel["type"] == "row":
        yield _text(4, 20, panel["title"], 'font-size="16" font-weight="bold"')
    else:
        yield f'<rect width="{width}" height="{height}" rx="3" fill="#fff" stroke="#dcdcdc"/>'
        draw = {"stat": _stat, "timeseries": _chart, "table": _table}[panel["type"]]
        yield from draw(panel, lines, width, height)
        yield _text(8, 17, panel["title"], 'font-weight="bold"')
    yield "</g>"


def _stat(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    colour = "#fff"
    for step in defaults.get("thresholds", {}).get("steps", ()):
        if lines and lines[0].last is not None and lines[0].last >= (step["value"] or 0):
            colour = _STEPS[step["color"]]
    ink = "#fff" if colour != "#fff" else "#222"
    yield f'<rect y="24" width="{width}" height="{height - 24}" rx="3" fill="{colour}"/>'
    for number, line in enumerate(lines):
        middle = width * (2 * number + 1) / (2 * len(lines))
        style = f'text-anchor="middle" fill="{ink}"'
        value = shown(line.last, defaults["unit"])
        yield _text(middle, 72, value, f'{style} font-size="24" font-weight="bold"')
        yield _text(middle, 94, line.legend, style)


def _chart(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> Iterator[str]:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    known = [value for line in lines for value in line.values if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    high = high if high > low else low + 1.0
    left, top = 70, 30
    right, bottom = width - 10, height - 20 - 15 * -(-min(len(lines), _LEGENDS) // 3)
    for share in (0.0, 0.5, 1.0):
        level = bottom - share * (bottom - top)
        yield f'<path d="M{left} {level:.0f}H{right}" stroke="#e4e4e4"/>'
        label = shown(low + share * (high - low), unit)
        yield _text(left - 5, level + 4, label, 'text-anchor="end" fill="#777" font-size="10"')
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path, begun = "", False
        for index, value in enumerate(line.values):
            if value is not None:
                at = left + (right - left) * index / max(1, len(line.values) - 1)
                level = bottom - (bottom - top) * (value - low) / (high - low)
                path += f"{'L' if begun else 'M'}{at:.0f} {level:.1f}"
            begun = value is not None
        yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for number, line in enumerate(lines[:_LEGENDS]):
        column, row = number % 3, number // 3
        at, level = 10 + column * (width - 20) / 3, bottom + 22 + 15 * row
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<rect x="{at:.0f}" y="{level - 8}" width="10" height="4" fill="{colour}"/>'
        room = int((width - 20) / 3 / 6) - 2
        yield _text(at + 14, level - 2, line.legend.rsplit("/", 1)[-1][:room], 'font-size="10"')


def _table(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> Iterator[str]:
    names = panel["transformations"][1]["options"]["renameByName"]
    columns = ["project", *names.values()]
    projects = list(dict.fromkeys(line.legend for line in lines))
    rows = [columns] + [
        [project, *(shown(line.last, "short") for line in lines if line.legend == project)]
        for project in projects
    ]
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            yield _text(10 + column * width / len(columns), 44 + 20 * number, cell)


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(text)}</text>'

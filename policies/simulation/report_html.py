"""Pages of plots that need no network: one file, everything in it, readable in light and dark.

Owns the look. Knows titles, numbers and how they are drawn; does not know what they mean. The plots are Plotly's; its
script is in the page once.
"""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any, Literal, NamedTuple

from plotly.io import to_html
from plotly.offline import get_plotlyjs

Kind = Literal["lines", "steps", "bars", "points"]
"""`steps`: a value holds until the next one, as in a distribution of samples."""

COLOURS = ("#3b7dd8", "#e0702b", "#2a9d6f", "#c2468f", "#8b6fd6", "#a8862a", "#3f9aa8", "#8a8a8a")
"""Told apart on white and on black."""
GRID = "rgba(128,128,128,0.25)"
MARK = "rgba(128,128,128,0.9)"
HEIGHT = 320

FIT = '<script>addEventListener("load", () => dispatchEvent(new Event("resize")))</script>'
"""A plot is drawn before those after it are there, whose scroll bar makes all of them narrower."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2430; --soft: #5d6675; --line: #d9dde3; --card: #f7f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --ink: #e6e9ee; --soft: #9aa4b2; --line: #2f353e; --card: #1b1f26; }
}
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1280px; padding: 24px; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 0 0 2px; }
p { color: var(--soft); margin: 0 0 12px; }
main { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0; overflow-x: auto;
  padding: 14px 16px; }
section.wide { grid-column: 1 / -1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 8px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
.js-plotly-plot text { fill: var(--ink) !important; }
.js-plotly-plot .hoverlayer text { fill: #ffffff !important; }
"""


class Series(NamedTuple):
    """One line, or one set of bars."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    dashed: bool = False


class Mark(NamedTuple):
    """A limit to compare with, drawn across the plot."""

    name: str
    at: float
    axis: Literal["x", "y"] = "x"


class Chart(NamedTuple):
    """A plot with its title and a sentence that says how to read it."""

    title: str
    note: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    kind: Kind = "lines"
    log_x: bool = False
    marks: Sequence[Mark] = ()
    stacked: bool = False
    wide: bool = False


class Table(NamedTuple):
    """Figures as text; the first column is what a row is of."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = True


def page(title: str, introduction: str, parts: Sequence[Chart | Table]) -> str:
    """A whole HTML page. Charts and tables follow in the order given, two beside each other where there is room."""
    sections = "\n".join(_section(part, number) for number, part in enumerate(parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n<main>\n{sections}\n</main>\n{FIT}\n</body>\n</html>\n"
    )


def _section(part: Chart | Table, number: int) -> str:
    body = _table(part) if isinstance(part, Table) else _plot(part, number)
    opening = '<section class="wide">' if part.wide else "<section>"
    return f"{opening}<h2>{escape(part.title)}</h2><p>{escape(part.note)}</p>{body}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _plot(chart: Chart, number: int) -> str:
    figure = {
        "data": [_trace(series, chart, COLOURS[row % len(COLOURS)]) for row, series in enumerate(chart.series)],
        "layout": _layout(chart),
    }
    html: str = to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        default_height=f"{HEIGHT}px",
        div_id=f"plot{number}",
        config={"displayModeBar": False, "responsive": True},
    )
    return html


def _trace(series: Series, chart: Chart, colour: str) -> dict[str, Any]:
    trace: dict[str, Any] = {"name": series.name, "x": list(series.x), "y": list(series.y)}
    if chart.kind == "bars":
        return {**trace, "type": "bar", "marker": {"color": colour}}
    if chart.kind == "points":
        return {**trace, "type": "scatter", "mode": "lines+markers", "line": {"color": colour, "width": 2}}
    line = {"color": colour, "width": 2, "dash": "dash" if series.dashed else "solid"}
    if chart.kind == "steps":
        line["shape"] = "hv"
    stack = {"stackgroup": "all", "line": {**line, "width": 0.5}} if chart.stacked else {}
    return {**trace, "type": "scatter", "mode": "lines", "line": line, **stack}


def _layout(chart: Chart) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    shapes, annotations = [], []
    for mark in chart.marks:
        across = "y" if mark.axis == "x" else "x"
        at = {f"{mark.axis}0": mark.at, f"{mark.axis}1": mark.at, f"{across}0": 0, f"{across}1": 1}
        line = {"color": MARK, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", f"{across}ref": f"{across} domain", "line": line, **at})
        # Annotations on a logarithmic axis are placed at the exponent, shapes at the value.
        exponent = mark.axis == "x" and chart.log_x
        place = {mark.axis: log10(mark.at) if exponent else mark.at, across: 1, f"{across}ref": f"{across} domain"}
        annotations.append({"text": escape(mark.name), "showarrow": False, "yanchor": "bottom", **place})
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 16, "t": 24, "b": 48},
        "xaxis": {**axis, "title": {"text": chart.x_title}, **({"type": "log"} if chart.log_x else {})},
        "yaxis": {**axis, "title": {"text": chart.y_title}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": -0.25},
        "showlegend": len(chart.series) > 1,
        "hovermode": "x unified" if len(chart.series) > 1 and chart.kind != "steps" else "closest",
        "shapes": shapes,
        "annotations": annotations,
        "barmode": "stack" if chart.stacked else "group",
    }

"""Pages of plots."""

import json
import re
from typing import Any

from policies.simulation.report_html import Chart, Mark, Series, Table, page

LINES = Chart("Waits", "How long.", "seconds", "share", [Series("a & b", [1, 10], [0.5, 1.0])], "steps", log_x=True)


def plotted(html: str) -> list[tuple[Any, Any]]:
    """Data and layout of each plot."""
    decoder = json.JSONDecoder()
    found = []
    for match in re.finditer(r'Plotly\.newPlot\(\s*"plot\d+",\s*', html):
        data, end = decoder.raw_decode(html, match.end())
        start = re.compile(r",\s*").match(html, end)
        assert start is not None
        found.append((data, decoder.raw_decode(html, start.end())[0]))
    return found


def test_a_page_has_its_parts_in_order_and_plotly_once() -> None:
    table = Table("Figures", "All of them.", ["what", "p50"], [["x < y", "1"]])
    html = page("A run", "On a toy.", [table, LINES])
    assert html.index("Figures") < html.index("Waits")
    assert "<td>x &lt; y</td>" in html
    assert len(re.findall(r"plotly\.js v\d", html)) == 1
    assert html.count("Plotly.newPlot(") >= 1


def test_a_chart_is_drawn_as_it_was_asked_for() -> None:
    marked = LINES._replace(marks=[Mark("limit", 10.0)])
    bars = Chart("Lengths", "", "tokens", "s", [Series("p50", ["1-2"], [0.1]), Series("p99", ["1-2"], [None])], "bars")
    (data, layout), (bar_data, bar_layout) = plotted(page("A run", "", [marked, bars]))
    assert data[0]["line"]["shape"] == "hv"
    assert layout["xaxis"]["type"] == "log"
    assert (layout["shapes"][0]["x0"], layout["annotations"][0]["x"]) == (10.0, 1.0)
    assert not layout["showlegend"]
    assert [trace["type"] for trace in bar_data] == ["bar", "bar"]
    assert bar_data[1]["y"] == [None]
    assert bar_layout["showlegend"]


def test_a_page_cannot_be_broken_out_of_by_a_name() -> None:
    evil = Chart("t", "", "x", "y", [Series("</script><b>", [1], [1])])
    html = page("</title><b>", "", [evil])
    assert "</script><b>" not in html
    assert "</title><b>" not in html

"""RAD's theorems as a page of plots.

Knows the figures of rad.py; runs nothing.
"""

from typing import Any

from policies.simulation.report_html import Chart, Mark, Series, page

Figures = dict[str, Any]


def html(figures: Figures) -> str:
    """The whole page."""
    bound, setup = figures["bound"], figures["setup"]
    introduction = (
        f"Tiles of {setup['tile_tokens']} tokens, no attention, {setup['duration_s']:g} s a run. No policy serves more "
        f"than {bound['tokens_per_s']:,.0f} tokens/s, {bound['rps']:.2f} requests/s (theorem 1)."
    )
    limit = (Mark("bound", bound["rps"], "x"),)
    charts = [
        _by_rate(
            "Backlog at the end", "Grows with time above what a policy can hold.", "tokens", "backlog_tokens", figures
        ),
        _by_rate("Tokens served", "A share of the bound.", "share", "share_of_bound", figures),
        _by_rate("Tile fill", "Mean over the steps.", "share", "tile_fill", figures),
    ]
    return page("RAD's theorems", introduction, [chart._replace(marks=limit) for chart in charts])


def _by_rate(title: str, note: str, y_title: str, key: str, figures: Figures) -> Chart:
    runs = [one for one in figures["runs"] if one["seed"] == figures["runs"][0]["seed"]]
    names = list(dict.fromkeys(one["policy"] for one in runs))
    series = [
        Series(
            name,
            [one["qps"] for one in runs if one["policy"] == name],
            [one[key] for one in runs if one["policy"] == name],
        )
        for name in names
    ]
    return Chart(title, note, "requests/s", y_title, series, "points")

"""The page of a prediction: what changes, the comparison, and the waits as they happened and as they were replayed.

Owns which plots say what a new policy would change; how a plot looks is report_html.py.
"""

from collections.abc import Sequence
from textwrap import wrap

from policies.simulation.outcome import Outcome
from policies.simulation.replay_page import distribution
from policies.simulation.report_html import Chart, Table, page
from policies.simulation.samples import GAP_METRIC, Samples
from policies.simulation.what_if import Line, in_cells

LINE_CHARACTERS = 140
COLUMNS = ("recorded", "replay now", "replay then", "change", "replay's error", "")


def what_if_page(
    title: str, introduction: str, changes: Sequence[str], lines: Sequence[Line], outcomes: Sequence[Outcome]
) -> str:
    """The page.

    Args:
        title: from which policy to which.
        introduction: what the prediction rests on.
        changes: in words.
        lines: the comparison.
        outcomes: what happened, and both replays.
    """
    recorded, now, then = map(Samples, outcomes)
    series = (("recorded", recorded), (f"replay {outcomes[1].policy}", now), (f"replay {outcomes[2].policy}", then))
    known = [line for line in lines if (line.recorded, line.now, line.then) != (None, None, None)]
    charts = [
        Chart(
            name,
            note,
            "seconds",
            f"share of {what}",
            [
                distribution(label, samples, len(samples))._replace(dashed=label == "recorded")
                for label, run in series
                if len(samples := run.of(metric, run.everyone))
            ],
            "steps",
            log_x=True,
        )
        for name, metric, what, note in (
            ("Time to first token", "ttft_s", "requests", "Share of the requests that waited no longer."),
            ("Time between tokens", GAP_METRIC, "gaps", "Share of the gaps between tokens that were no longer."),
        )
    ]
    parts: list[Chart | Table] = [
        Table(
            "What changes",
            "In the policy, in words.",
            ("change",),
            [(line,) for change in changes for line in _lines(change)],
        ),
        Table(
            "What the recorded traffic would have seen",
            "The replay under the policy in force, against what was recorded, is the error that a change must exceed.",
            ("", *COLUMNS),
            [(f"{line.group}: {line.metric}", *in_cells(line)) for line in known],
        ),
        *charts,
    ]
    return page(title, introduction, parts)


def _lines(change: str) -> list[str]:
    """A cell is one line, and a stage in words may be long."""
    return wrap(change, LINE_CHARACTERS, subsequent_indent="\N{NO-BREAK SPACE}" * 4)

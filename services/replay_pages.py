"""The pages of `fairlead replay --html`.

Imports the plotting library, and is therefore imported only where a page is asked for. Knows what a run was asked as,
and the file that a page goes to.
"""

from collections.abc import Sequence
from pathlib import Path

from policies.simulation.outcome import Outcome
from policies.simulation.replay_page import replay_page
from policies.simulation.report import Figures
from policies.simulation.search_page import capacity_page, seeds_page
from policies.simulation.timeline import Timeline
from services.replay_inputs import keeps_arrivals, read_device, write_text
from services.replay_runs import Run


def draw_run(path: Path, run: Run, figures: Figures, outcome: Outcome, timeline: Timeline) -> None:
    """Write the page of one run.

    Raises:
        ReplayError: the file cannot be written. So do the next two.
    """
    write_text(path, replay_page(figures, outcome, timeline, _setting(run, [run.seed], run.qps)), "--html")


def draw_seeds(path: Path, run: Run, seeds: Sequence[int], figures: Figures) -> None:
    """Write the page of the same run under several seeds."""
    write_text(path, seeds_page(figures, _setting(run, seeds, run.qps)), "--html")


def draw_capacity(path: Path, run: Run, seeds: Sequence[int], figures: Figures) -> None:
    """Write the page of a search."""
    write_text(path, capacity_page(figures, _setting(run, seeds, None)), "--html")


def _setting(run: Run, seeds: Sequence[int], qps: float | None) -> str:
    """On what it ran."""
    rate = "" if qps is None else f" at {qps:g} requests/s"
    several = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    seeded = "" if keeps_arrivals(run.trace) else f", {several}"
    device = read_device(run.executor, efficiency=run.executor_efficiency, seed=run.seed)
    executors = "" if run.num_executors == 1 else f"{run.num_executors} times "
    in_flight = "1 step" if run.steps_in_flight == 1 else f"{run.steps_in_flight} steps"
    return f"{run.trace}{rate}{seeded}, on {executors}{device.description}, {in_flight} in flight."

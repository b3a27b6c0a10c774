"""What a new policy would have made of the recorded traffic: the last window replayed under it and under the one in
force, on executors whose step times are fitted to the live ones'.

Owns the way from a data folder to three reports and their comparison. Prints nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from policies.document.compile import compile_admission
from policies.simulation.driver import Simulation
from policies.simulation.fitted_model import FittedDevice
from policies.simulation.fitting import FitError, StepSample, fit
from policies.simulation.outcome import Outcome
from policies.simulation.report import Figures, report
from policies.simulation.step_shape import StepShape
from policies.simulation.what_if import Line, compare
from services.policy_documents import Document
from services.revisions import Revisions
from services.traffic.reading import Fleet, read_fleet, read_requests
from services.traffic.replaying import as_window
from services.traffic.rows import StepRow

LEAST_REQUESTS = 20
MOST_REQUESTS = 20_000
"""Of a window, the newest: a replay of more takes minutes and says no more."""
MOST_STEPS = 20_000
SEED = 42
"""Of the noise that both replays draw."""

Progress = Callable[[int, int], None]
"""Told how many requests have arrived in both replays, and of how many."""


class NoPredictionError(Exception):
    """What was recorded does not do for a prediction; the sentence says what is missing."""


class Basis(Struct, frozen=True):
    """What a prediction rests on."""

    num_requests: int
    num_left_out: int
    num_older: int
    """In the window but not replayed: beyond the most that are."""
    num_of_other_policies: int
    """That arrived while another policy was in force: they are in the replay's error."""
    began_unix_s: float
    duration_s: float
    num_executors: int
    executor: str
    num_steps: int
    step_error: float
    """Median of the fit's relative error of a step."""


class Prediction(NamedTuple):
    """Three reports and what they say together."""

    basis: Basis
    lines: list[Line]
    reports: tuple[Figures, Figures, Figures]
    """Of what happened, of the replay under the policy in force, and of that under the new one."""
    outcomes: tuple[Outcome, Outcome, Outcome]
    """The same three."""

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON; without the single requests."""
        named = dict(zip(("recorded", "now", "then"), self.reports, strict=True))
        return {**msgspec.to_builtins({"basis": self.basis, "lines": self.lines}), **named}


def predict(data: str, now: Document, then: Document, window_s: float, progress: Progress) -> Prediction:
    """Replay the last `window_s` seconds of a data folder's traffic under the policy in force and under a new one.

    Raises:
        NoPredictionError: too few requests or steps were recorded.
        TrafficError, HistoryError: what was recorded cannot be read.
    """
    rows = read_requests(data, window_s)
    window = as_window(rows[-MOST_REQUESTS:]) if rows else None
    if window is None or len(window.happened) < LEAST_REQUESTS:
        found = 0 if window is None else len(window.happened)
        raise NoPredictionError(
            f"{found} requests with an output are recorded in the window, a prediction needs {LEAST_REQUESTS}; "
            "ask for a longer --window, or again when there was more traffic"
        )
    fleet = read_fleet(data)
    if fleet is None:
        raise NoPredictionError(f"no executor is recorded in {data}: the services have not run on it")
    device = _fitted(fleet)
    num_requests = len(window.happened)

    def replayed(document: Document, offset: int) -> Outcome:
        return Simulation(
            document.content,
            window.requests,
            device.device(SEED),
            num_executors=fleet.fleet.num_executors,
            steps_in_flight=device.max_steps_in_flight,
            progress=lambda _, arrived: progress(offset + arrived, 2 * num_requests),
        ).run()

    happened = window.outcome(now.policy, compile_admission(now.policy).cost)
    outcomes = (happened, replayed(now, 0), replayed(then, num_requests))
    recorded, before, after = (report(outcome, 0.0) for outcome in outcomes)
    same = {each.revision for each in Revisions(data).all() if each.document == now.content}
    basis = Basis(
        num_requests=num_requests,
        num_left_out=window.num_left_out,
        num_older=max(0, len(rows) - MOST_REQUESTS),
        num_of_other_policies=sum(row.revision not in same for row in rows[-MOST_REQUESTS:]),
        began_unix_s=window.began_unix_s,
        duration_s=window.duration_s,
        num_executors=fleet.fleet.num_executors,
        executor=fleet.fleet.description,
        num_steps=device.model.num_steps,
        step_error=device.model.error,
    )
    return Prediction(basis, compare(recorded, before, after), (recorded, before, after), outcomes)


def _fitted(fleet: Fleet) -> FittedDevice:
    try:
        model = fit([_sample(row) for row in fleet.steps[-MOST_STEPS:]])
    except FitError as error:
        raise NoPredictionError(f"the executors' step times cannot be fitted: {error}") from error
    row = fleet.fleet
    return FittedDevice(
        description=row.description,
        num_blocks=row.num_blocks,
        block_tokens=row.block_tokens,
        max_sequence_tokens=row.max_sequence_tokens,
        max_steps_in_flight=row.max_steps_in_flight,
        model=model,
    )


def _sample(row: StepRow) -> StepSample:
    return StepSample(
        executor=row.executor,
        shape=StepShape(row.prefill_tokens, row.decodes, row.context_tokens, row.num_prefills, row.prefill_pairs),
        planned_at_s=row.planned_at_s,
        begun_at_s=row.begun_at_s,
        ended_at_s=row.ended_at_s,
        heard_at_s=row.heard_at_s,
    )

"""Runs spread over processes."""

import os
from functools import partial
from math import factorial

import pytest

from policies.simulation.experiments import ExperimentError, spread


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_tasks_and_each_is_told(processes: int) -> None:
    told: list[None] = []
    assert spread(factorial, [3, 1, 4], processes=processes, on_done=lambda: told.append(None)) == [6, 1, 24]
    assert len(told) == 3


def test_a_process_that_dies_ends_the_experiment_with_one_sentence() -> None:
    with pytest.raises(ExperimentError, match="a process of the experiment was killed"):
        spread(os._exit, [1, 1], processes=2, on_done=lambda: None)


def test_an_error_of_a_task_is_the_callers() -> None:
    with pytest.raises(ValueError, match="not defined for negative values"):
        spread(partial(factorial), [3, -1], processes=2, on_done=lambda: None)

"""A step model from measured steps."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_recording import SLAI, recorded

from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES, Device, StepTime
from policies.simulation.fitted_model import (
    DECODES,
    PROMPTS,
    Curve,
    FittedDevice,
    FittedModelError,
    decode_device,
    encode_device,
)
from policies.simulation.fitting import FitError, StepSample, fit, least_squares
from policies.simulation.step_shape import StepShape
from policies.simulation.workload import synthetic

REQUESTS = synthetic("chat", qps=0.2, duration_s=200.0, seed=5, max_sequence_tokens=4096)


def measured(step_time: StepTime, count: int = 2000, noise: float = 0.0) -> list[StepSample]:
    """Steps of every kind, one after the other."""
    generator = np.random.default_rng(1)
    samples, now = [], 0.0
    for _ in range(count):
        decodes = int(generator.integers(0, 100)) if generator.random() < 0.8 else 0
        chunk = int(generator.integers(1, 1024)) if not decodes or generator.random() < 0.5 else 0
        behind = int(generator.integers(0, 2000))
        shape = StepShape(
            chunk,
            decodes,
            decodes * int(generator.integers(1, 900)),
            chunk and int(generator.integers(1, 4)),
            chunk * (behind + chunk / 2),
        )
        seconds = step_time.step_s(shape) * (1 + noise * generator.standard_normal())
        samples.append(StepSample(0, shape, now, now, now + seconds, now + seconds))
        now += seconds
    return samples


@pytest.mark.parametrize("name", ["rtx6000ada-mistral7b", "a10g-llama2-7b"])
def test_a_device_of_known_terms_is_recovered(name: str) -> None:
    step_time = DEVICES[name](0.8).step_time
    model = fit(measured(step_time))
    assert model.error < 1e-4
    for shape in (
        StepShape(0, 1, 100),
        StepShape(0, 60, 20_000),
        StepShape(700, 0, 0, 2, 9e5),
        StepShape(300, 50, 9_000, 1, 4e4),
    ):
        assert model.step_s(shape) == pytest.approx(step_time.step_s(shape), rel=1e-3)


def test_steps_in_tiles_are_met_within_a_few_percent() -> None:
    step_time = DEVICES["toy-tile"](1.0).step_time
    model = fit(measured(step_time))
    assert model.error < 0.06
    assert all(bucket.error < 0.3 for bucket in model.buckets)


def test_a_few_disturbed_steps_do_not_bend_the_fit_but_are_drawn_again() -> None:
    step_time = DEVICES["a10g-llama2-7b"](1.0).step_time
    samples = [
        sample._replace(ended_at_s=sample.begun_at_s + 3 * sample.step_time_s) if number % 20 == 0 else sample
        for number, sample in enumerate(measured(step_time))
    ]
    model = fit(samples)
    shape = StepShape(0, 50, 20_000)
    assert model.fitted_s(shape) == pytest.approx(step_time.step_s(shape), rel=0.02)
    assert model.step_s(shape) == pytest.approx(1.1 * step_time.step_s(shape), rel=0.03)
    drawn = model.drawn(7)
    ratios = np.array([drawn.step_s(shape) for _ in range(5000)]) / model.fitted_s(shape)
    assert np.count_nonzero(ratios > 2.5) / 5000 == pytest.approx(0.05, abs=0.015)
    assert ratios.mean() == pytest.approx(1.1, rel=0.02)


def test_the_same_seed_draws_the_same_history() -> None:
    model = fit(measured(DEVICES["a10g-llama2-7b"](1.0).step_time, noise=0.1))
    shape = StepShape(0, 50, 20_000)
    first, again, other = ([drawn.step_s(shape) for _ in range(50)] for drawn in map(model.drawn, (1, 1, 2)))
    assert first == again != other


class Slow(NamedTuple):
    """Delays that are always the same."""

    def launch_s(self) -> float:
        return 0.003

    def relaunch_s(self) -> float:
        return 0.001

    def return_s(self) -> float:
        return 0.002


def test_a_run_replayed_with_the_model_fitted_to_it_happens_again() -> None:
    device = DEVICES["a10g-llama2-7b"](1.0)._replace(delays=Slow())
    outcome, recording = recorded(SLAI, REQUESTS, device)
    fitted = FittedDevice(
        description="the same", num_blocks=625, block_tokens=16, max_sequence_tokens=4096, model=fit(recording.steps)
    )
    delays = fitted.model.delays
    for found, true_s in ((delays.launch_s, 0.003), (delays.relaunch_s, 0.001), (delays.return_s, 0.002)):
        assert np.quantile(found, [0.05, 0.95]) == pytest.approx([true_s, true_s])
    replayed = Simulation(SLAI, recording.requests, fitted.device(1)).run()
    assert replayed.num_steps == pytest.approx(outcome.num_steps, rel=0.01)
    for now, then in zip(replayed.served, outcome.served, strict=True):
        assert now.last_token_at_s == pytest.approx(then.last_token_at_s, abs=0.3)
    for slo_class, gaps in outcome.gaps_s.items():
        again = replayed.gaps_s[slo_class]
        assert np.quantile(again, [0.5, 0.99]) == pytest.approx(np.quantile(gaps, [0.5, 0.99]), rel=0.05)


def test_past_the_last_knot_a_curve_rises_as_it_does_on_the_whole() -> None:
    curve = Curve(knots=(1, 16, 17), seconds=(0.01, 0.01, 0.026))
    assert [curve.at(count) for count in (0, 1, 16, 17)] == pytest.approx([0.01, 0.01, 0.01, 0.026])
    assert curve.at(33) == pytest.approx(0.042)


def test_a_gap_in_the_samples_does_not_pass_for_a_long_launch() -> None:
    _, recording = recorded(SLAI, REQUESTS, DEVICES["a10g-llama2-7b"](1.0)._replace(delays=Slow()))
    third = len(recording.steps) // 3
    launch_s = fit(recording.steps[:third] + recording.steps[-third:]).delays.launch_s
    assert np.median(launch_s) == pytest.approx(0.003)


def test_few_steps_are_not_fitted() -> None:
    with pytest.raises(FitError, match="31 measured steps; a step model needs 32"):
        fit(measured(DEVICES["toy-tile"](1.0).step_time, count=31))


def test_steps_of_one_kind_are_fitted_and_say_nothing_of_the_others_noise() -> None:
    only = [sample for sample in measured(DEVICES["a10g-llama2-7b"](1.0).step_time) if not sample.shape.prefill_tokens]
    model = fit(only)
    assert model.noise[PROMPTS].mean == 1.0
    assert model.noise[DECODES].mean == pytest.approx(1.0, rel=1e-3)
    assert fit([only[0]] * 40).step_s(only[0].shape) == pytest.approx(only[0].step_time_s, rel=1e-3)


def test_a_fitted_executor_comes_back_from_its_file() -> None:
    fitted = FittedDevice(
        description="a card",
        num_blocks=9,
        block_tokens=16,
        max_sequence_tokens=64,
        model=fit(measured(DEVICES["toy-tile"](1.0).step_time)),
    )
    assert decode_device(encode_device(fitted), "model.json") == fitted
    device = fitted.device(1)
    assert isinstance(device, Device)
    assert (device.description, device.num_blocks) == ("a card", 9)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"version": 1', b'"version": 2', "version"),
        (b'"knots": [', b'"knots": [9999999,', "ascending knots"),
        (b'"prompts": {', b'"prompt": {', "noise is of"),
        (b"{", b"[", "Expected `object`"),
    ],
)
def test_a_file_that_is_no_fitted_executor_is_refused_in_a_sentence(old: bytes, new: bytes, sentence: str) -> None:
    fitted = FittedDevice(
        description="",
        num_blocks=9,
        block_tokens=16,
        max_sequence_tokens=64,
        model=fit(measured(DEVICES["toy-tile"](1.0).step_time)),
    )
    text = encode_device(fitted)
    assert old in text
    with pytest.raises(FittedModelError, match=f"model.json: is no fitted executor of this version: .*{sentence}"):
        decode_device(text.replace(old, new, 1), "model.json")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_least_squares_meets_the_conditions_of_its_optimum(seed: int, num_columns: int) -> None:
    generator = np.random.default_rng(seed)
    columns = generator.standard_normal((40, num_columns))
    wanted = generator.standard_normal(40)
    terms = least_squares(columns, wanted)
    gains = columns.T @ (wanted - columns @ terms)
    # Karush, Kuhn and Tucker: a term is at 0 and would only do harm, or it is above 0 and does its best.
    assert (terms >= 0).all()
    assert (gains[terms == 0] <= 1e-5).all()
    assert np.abs(gains[terms > 0]).max(initial=0.0) <= 1e-5

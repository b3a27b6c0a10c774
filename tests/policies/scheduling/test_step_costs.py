"""What steps are believed to take: learned from those that ended, careful where nothing was seen."""

import random

import pytest

from policies.scheduling.step_costs import StepCost, StepCosts, StepShape


def seconds(num_tokens: int, context_tokens: int) -> float:
    return 0.005 + 1e-4 * num_tokens + 2e-7 * context_tokens


def learned(count: int = 300, noise: float = 0.0) -> StepCost:
    draw = random.Random(1)  # noqa: S311  repeatable
    cost = StepCost()
    for _ in range(count):
        shape = draw.randint(100, 900), draw.randint(0, 200_000)
        cost.observe(*shape, seconds(*shape) * draw.uniform(1 - noise, 1 + noise))
    return cost


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.01), (0.03, 0.05)])
def test_a_line_is_found_through_what_varies(noise: float, error: float) -> None:
    cost = learned(noise=noise)
    for shape in [(128, 0), (512, 100_000), (1000, 200_000)]:
        assert cost.seconds(*shape) == pytest.approx(seconds(*shape), rel=error)
    assert cost.tokens_within(seconds(512, 100_000), 100_000) == pytest.approx(512, rel=error)


def test_old_steps_are_forgotten() -> None:
    cost = learned()
    for step in range(600):
        cost.observe(100 + step, 1000, 3 * seconds(100 + step, 1000))
    assert cost.seconds(600, 1000) == pytest.approx(3 * seconds(600, 1000), rel=0.02)


def test_a_longer_step_is_not_believed_cheaper_before_one_was_seen() -> None:
    cost = StepCost()
    for _ in range(50):
        cost.observe(256, 0, 0.04)
    assert cost.seconds(256, 0) == pytest.approx(0.04)
    assert cost.seconds(512, 0) == pytest.approx(0.08)
    assert cost.tokens_within(0.08, 0) == pytest.approx(512)


def test_nothing_has_a_negative_price() -> None:
    cost = StepCost()
    for step in range(100):
        cost.observe(100 + step, 50_000 - 100 * step, 0.1 - 0.0005 * step)
    assert cost.token_s >= 0
    assert cost.context_s >= 0
    assert cost.tokens_within(1.0, 0) > 0 > cost.tokens_within(0.0, 60_000)


def test_steps_without_prompts_are_learned_apart() -> None:
    costs = StepCosts()
    shape = StepShape(100, 1000, has_prompts=True)
    assert costs.expected_s(shape) is None
    costs.observe(shape, 0.02)
    assert costs.expected_s(shape) == pytest.approx(0.02)
    assert costs.expected_s(shape._replace(has_prompts=False)) is None

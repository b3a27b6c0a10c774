"""Lengths made up to be like the published trace."""

import numpy as np
import pytest

from policies.simulation.sharegpt import sharegpt_lengths


def test_made_up_lengths_have_the_published_statistics() -> None:
    prompts, outputs = np.array(sharegpt_lengths(1)).T
    assert prompts.mean() == pytest.approx(2340, rel=0.03)
    assert outputs.mean() == pytest.approx(438.7, rel=0.03)
    assert prompts.std() == pytest.approx(2088.8, rel=0.03)
    assert outputs.std() == pytest.approx(265.6, rel=0.03)
    assert np.median(prompts) == pytest.approx(1730, rel=0.05)
    assert np.median(outputs) == pytest.approx(415, rel=0.05)
    assert (prompts <= 512).mean() == pytest.approx(0.233, abs=0.01)
    assert (prompts <= 4096).mean() == pytest.approx(0.785, abs=0.01)
    assert (prompts + outputs).max() <= 8192
    assert min(prompts.min(), outputs.min()) >= 1


def test_the_same_seed_makes_the_same_lengths() -> None:
    assert sharegpt_lengths(3, 100) == sharegpt_lengths(3, 100)
    assert sharegpt_lengths(3, 100) != sharegpt_lengths(4, 100)

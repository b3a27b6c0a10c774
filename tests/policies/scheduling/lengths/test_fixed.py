"""Predictors that learn nothing, their distributions, and how estimates rise."""

import numpy as np
import pytest

from policies.document.memory import Interval, Prediction, Prior, Survival
from policies.scheduling.lengths import fixed
from policies.scheduling.lengths.predicted import Features, Predicted
from policies.scheduling.lengths.priors import cumulative, quantile
from policies.scheduling.lengths.survival import refinement


def features(truth=None, longest=1000, number=1):
    return Features("acme", "free", 10, longest, number, truth)


def nothing_emitted(_):
    return 0


def test_a_constant_interval_is_cut_to_what_was_asked_for():
    predictor = fixed.constant(Prediction(kind="constant", interval=Interval(20, 400)), nothing_emitted)
    assert predictor.predict(1, features()) == Predicted(20, 210, 400)
    assert predictor.predict(1, features(longest=100)) == Predicted(20, 100, 100)
    assert predictor.predict(1, features(longest=5)) == Predicted(5, 5, 5)
    named = Prediction(kind="constant", interval=Interval(20, 400, 30))
    assert fixed.constant(named, nothing_emitted).predict(1, features()).point == 30


@pytest.mark.parametrize(
    ("truth", "expected"), [(1, (1, 100)), (100, (1, 100)), (101, (101, 300)), (301, (301, 1000)), (5000, (301, 1000))]
)
def test_a_bucket_is_the_one_that_the_truth_is_in(truth, expected):
    interval = fixed.bucket(Prediction(kind="bucket", borders=(100, 300)), nothing_emitted).predict(1, features(truth))
    assert (interval.lower, interval.upper) == expected


def test_an_oracle_knows_the_truth_or_what_is_near_it():
    exact = fixed.oracle(Prediction(kind="oracle"), nothing_emitted)
    assert exact.predict(1, features(77)) == Predicted(77, 77, 77)
    assert exact.predict(1, features(None)) == Predicted(1000, 1000, 1000)
    centred = fixed.oracle(Prediction(kind="oracle", error=0.5), nothing_emitted)
    assert centred.predict(1, features(100)) == Predicted(50, 100, 150)


def test_an_interval_at_a_random_place_holds_the_truth_and_is_the_same_for_the_same_request():
    options = {"kind": "oracle", "error": 0.5, "position": "random"}
    one, other = (fixed.oracle(Prediction(seed=seed, **options), nothing_emitted) for seed in (1, 2))
    intervals = [one.predict(number, features(100, number=number)) for number in range(200)]
    assert all(i.lower <= 100 <= i.upper and i.upper - i.lower in (100, 101) for i in intervals)
    assert len({i.lower for i in intervals}) > 30
    assert intervals[7] == one.predict(999, features(100, number=7))
    assert intervals != [other.predict(number, features(100, number=number)) for number in range(200)]


@pytest.mark.parametrize(
    ("prior", "mean", "median"),
    [
        (Prior(kind="geometric", mean=80.0), 80, 56),
        (Prior(kind="linear_geometric", mean=79.0), 79, 67),
        (Prior(kind="lognormal", median=45.0, sigma=1.1), 82.9, 45),
        (Prior(kind="two_point", values=(20, 400), shares=(1.0, 3.0)), 305, 400),
        (Prior(kind="empirical", values=(1, 2, 3, 10)), 4, 2),
    ],
)
def test_a_prior_has_its_mean_and_median(prior, mean, median):
    shares = cumulative(prior)
    chances = np.diff(shares, prepend=0.0)
    assert shares[-1] == 1.0
    assert (chances >= 0).all()
    assert float((chances * np.arange(1, len(shares) + 1)).sum()) == pytest.approx(mean, rel=0.01)
    assert quantile(shares, 0.5) == pytest.approx(median, abs=1)


def test_a_distributions_interval_are_its_quantiles():
    prior = Prior(kind="two_point", values=(20, 400), shares=(0.5, 0.5))
    predictor = fixed.distribution(Prediction(kind="distribution", prior=prior), nothing_emitted)
    assert predictor.predict(1, features()) == Predicted(20, 20, 400)
    middle = fixed.distribution(Prediction(kind="distribution", prior=prior, point="midpoint"), nothing_emitted)
    assert middle.predict(1, features()).point == 210


def test_by_default_an_estimate_is_at_least_what_there_is():
    rule = refinement(Prediction())
    assert not rule.preempts
    assert rule.least(7) == 7
    assert rule.raised(np.array([5, 5], np.int32), np.array([3, 9], np.int32)).tolist() == [5, 9]


def test_whoever_survives_a_length_of_the_support_comes_to_the_next():
    rule = refinement(Prediction(survive=Survival(support=(20, 400))))
    assert rule.preempts
    assert [rule.least(tokens) for tokens in (0, 19, 20, 399, 400, 500)] == [20, 20, 400, 400, 400, 500]
    produced = np.array([-3, 19, 20, 400, 500], np.int32)
    assert rule.raised(np.full(5, 20, np.int32), produced).tolist() == [20, 20, 400, 400, 500]


def test_a_quantile_of_a_memoryless_length_is_a_constant_more_than_what_there_is():
    prior = Prior(kind="geometric", mean=80.0)
    rule = refinement(Prediction(kind="distribution", prior=prior, survive=Survival(quantile=0.1)))
    assert {rule.least(tokens) - tokens for tokens in range(0, 600, 50)} == {9}
    assert rule.raised(np.array([1], np.int32), np.array([100], np.int32)).tolist() == [109]

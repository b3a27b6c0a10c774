"""Length intervals from experience hold as often as promised (prediction specification, T9)."""

import math

import numpy as np
import pytest

from policies.document.memory import CoverageTarget, Prediction
from policies.scheduling.lengths.conformal import INFORMED, MAX_BUCKETS, Conformal, survival_quantiles
from policies.scheduling.lengths.predicted import Features, Predicted

RUNNING = 64
"""Requests that run at a time."""


def features(number, prompt=100, longest=4096, tenant="acme", slo_class="free"):
    return Features(tenant, slo_class, prompt, longest, number, None)


def lengths(generator, count, median, spread, longest=4096):
    drawn = median * np.exp(spread * generator.standard_normal(count))
    return np.clip(np.rint(drawn), 1, longest).astype(int)


def play(predictor, outputs, *, prompts=None, longest=4096, now=None):
    """Requests of which `RUNNING` run at a time, a token each a step; returns (interval, length) in order of end."""
    emitted = {} if now is None else now
    ended, waiting, running = [], list(range(len(outputs))), {}
    while waiting or running:
        while waiting and len(running) < RUNNING:
            number = waiting.pop(0)
            prompt = 100 if prompts is None else int(prompts[number])
            running[number] = predictor.predict(number, features(number, prompt, longest))
            emitted[number] = 0
        jump = min(min(outputs[n], longest) - emitted[n] for n in running)
        for number in list(running):
            emitted[number] += int(jump)
            if emitted[number] >= min(outputs[number], longest):
                predictor.observe(number, emitted.pop(number), cut_short=False)
                ended.append((running.pop(number), min(int(outputs[number]), longest)))
    return ended


def coverage(ended):
    lower = sum(interval.lower <= length for interval, length in ended) / len(ended)
    upper = sum(interval.upper >= length for interval, length in ended) / len(ended)
    return lower, upper


def conformal(**options):
    emitted = {}
    return Conformal(Prediction(**options), lambda sequence: emitted.get(sequence, 0)), emitted


@pytest.mark.parametrize("seed", [0, 1])
def test_each_bound_holds_as_often_as_it_should(seed):
    generator = np.random.default_rng(seed)
    predictor, emitted = conformal()
    ended = play(predictor, lengths(generator, 5000, 80, 0.9), now=emitted)
    for share in coverage(ended[-2000:]):
        assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_change_of_the_lengths_is_followed_within_500_requests(factor):
    generator = np.random.default_rng(2)
    predictor, emitted = conformal()
    outputs = lengths(generator, 5000, 150, 0.8)
    outputs[2500:] = np.maximum(1, outputs[2500:] * factor)
    ended = play(predictor, outputs, now=emitted)
    recovered = ended[3000:]
    for share in coverage(recovered[-2000:]):
        assert 0.93 <= share <= 0.97
    for share in coverage(recovered[:500]):
        assert share >= 0.90


def test_other_targets_are_met_too():
    predictor, emitted = conformal(coverage=CoverageTarget(lower=0.8, upper=0.6))
    ended = play(predictor, lengths(np.random.default_rng(3), 4000, 80, 0.9), now=emitted)
    lower, upper = coverage(ended[-2000:])
    assert 0.78 <= lower <= 0.82
    assert 0.58 <= upper <= 0.62


def test_prompts_that_tell_of_their_outputs_get_narrower_intervals():
    generator = np.random.default_rng(4)
    prompts = generator.integers(10, 2000, 6000)
    noise = np.exp(0.2 * generator.standard_normal(6000))
    outputs = np.clip(np.rint(prompts / 4 * noise), 1, 4096).astype(int)
    predictor, emitted = conformal()
    informed = play(predictor, outputs, prompts=prompts, now=emitted)[-1500:]
    predictor, emitted = conformal()
    blind = play(predictor, outputs, now=emitted)[-1500:]
    widths = [np.mean([math.log(i.upper / i.lower) for i, _ in ended]) for ended in (informed, blind)]
    assert widths[0] < 0.6 * widths[1]
    assert min(coverage(informed)) >= 0.92


def test_without_experience_any_length_may_come():
    predictor, _ = conformal()
    assert predictor.predict(1, features(1, longest=300)) == Predicted(1, 300, 300)
    predictor, _ = conformal(point="midpoint")
    assert predictor.predict(1, features(1, longest=300)) == Predicted(1, 150, 300)


def test_a_tenant_without_experience_is_judged_by_all_the_others():
    predictor, _ = conformal()
    for number in range(INFORMED):
        predictor.predict(number, features(number))
        predictor.observe(number, 40 + number % 3, cut_short=False)
    interval = predictor.predict(99, features(99, tenant="new", slo_class="paid"))
    assert 35 <= interval.lower <= interval.point <= interval.upper <= 45


def test_requests_that_still_run_keep_a_fresh_bucket_from_being_too_short():
    def median(emitted):
        predictor = Conformal(Prediction(), emitted)
        for number in range(200):
            predictor.predict(number, features(number))
        for number in range(60):  # the shortest end first
            predictor.observe(number, 10, cut_short=False)
        return predictor.predict(999, features(999)).point

    assert median(lambda _: 0) == 10
    assert median(lambda _: 200) >= 200


def test_requests_that_never_ran_are_forgotten():
    predictor = Conformal(Prediction(), lambda _sequence: 3000)

    def ended(numbers):
        for number in numbers:
            predictor.predict(number, features(number))
            predictor.observe(number, 20, cut_short=False)

    ended(range(1000, 1100))  # prompts are told apart by length from here on
    for number in range(40):
        predictor.predict(number, features(number))
    ended(range(2000, 2100))
    assert predictor.predict(40, features(40)).upper == 4096
    for number in (*range(41), 9999):
        predictor.forget(number)
    ended(range(3000, 3100))
    assert predictor.predict(41, features(41)).upper < 100


def test_what_was_cut_short_counts_as_longer_and_gives_no_score():
    predictor, _ = conformal()
    for number in range(300):
        predictor.predict(number, features(number))
        cut = number % 2 == 1
        predictor.observe(number, 20 if cut else 100, cut_short=cut)
    assert predictor.predict(999, features(999)).lower == 100


def test_bounds_never_pass_what_was_asked_for():
    predictor, emitted = conformal()
    ended = play(predictor, lengths(np.random.default_rng(5), 1000, 200, 1.0), longest=150, now=emitted)
    assert all(1 <= i.lower <= i.point <= i.upper <= 150 for i, _ in ended)
    assert coverage(ended[-500:])[1] == 1.0


def test_tenants_beyond_count_are_forgotten_and_nothing_breaks():
    predictor, _ = conformal()
    for number in range(MAX_BUCKETS):
        predictor.predict(number, features(number, tenant=f"t{number}"))
    for number in range(MAX_BUCKETS):
        predictor.observe(number, 10, cut_short=False)
    predictor.observe(-5, 10, cut_short=False)
    assert predictor.predict(-1, features(-1, tenant="t0")).point == 10


def test_survival_quantiles_are_kaplan_meiers():
    # The example of the definition: at 6 one of 10 ends, at 7 one of 9 after one was lost sight of, ...
    tokens = np.array([6, 6, 7, 9, 10, 13, 16, 22, 23, 25])
    whole = np.array([True, False, True, False, True, True, True, True, True, False])
    survival, at_risk, reached = 1.0, 10, {}
    for length, ends in sorted(
        zip(tokens.tolist(), whole.tolist(), strict=True), key=lambda pair: (pair[0], not pair[1])
    ):
        survival *= 1 - ends / at_risk
        at_risk -= 1
        reached[length] = 1 - survival
    lower, point, upper = survival_quantiles(tokens, whole, (0.1, 0.5, 0.95))
    assert lower == min(length for length, share in reached.items() if share >= 0.1 - 1e-12)
    assert point == min(length for length, share in reached.items() if share >= 0.5)
    assert upper == math.inf

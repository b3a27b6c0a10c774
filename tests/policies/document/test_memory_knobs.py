"""The knobs of KV memory and prediction: what is refused, what a live service refuses, and how they read."""

import pytest

from policies.document.explain import explain
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError

HEAD = """version: 1
name: t
classes: [{name: one, ttft_s: 1, tbt_s: 1}]
batching:
  stages:
    - decode: {order: [most_predicted_output]}
    - prefill: {from: [started, waiting], order: [predicted_output]}
"""


def refusal(more: str, load=load_policy) -> str:
    with pytest.raises(PolicyError) as caught:
        load((HEAD + more).encode(), "p.yaml")
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("prediction: {kind: constant}", "constant has no `interval`"),
        ("prediction: {kind: distribution}", "distribution has no `prior`"),
        ("prediction: {kind: bucket}", "bucket has no `borders`"),
        ("prediction: {interval: {lower: 1, upper: 2}}", "kind: conformal does not read `interval`"),
        ("prediction: {error: 0.5}", "kind: conformal does not read `error`"),
        ("prediction: {kind: constant, interval: {lower: 9, upper: 2}}", "the bounds are not in order"),
        ("prediction: {kind: constant, interval: {lower: 1, point: 9, upper: 2}}", "the bounds are not in order"),
        ("prediction: {kind: bucket, borders: [5, 5]}", "the lengths do not ascend"),
        ("prediction: {kind: bucket, borders: [2000000]}", "longer than any output"),
        ("prediction: {kind: distribution, prior: {kind: geometric}}", "geometric has no `mean`"),
        ("prediction: {kind: distribution, prior: {kind: geometric, mean: 9, sigma: 1}}", "does not read `sigma`"),
        ("prediction: {kind: distribution, prior: {kind: two_point, values: [1, 2, 3]}}", "two_point has 3 values"),
        ("prediction: {kind: distribution, prior: {kind: empirical, values: [1, 2], shares: [1]}}", "1 shares for 2"),
        ("prediction: {survive: {}}", "the rule is not one of two"),
        ("prediction: {survive: {quantile: 0.1, support: [1, 2]}}", "the rule is not one of two"),
        ("prediction: {survive: {quantile: 0.1}}", "a quantile of what is left needs a distribution"),
        ("kv: {estimate: oracle}\nprediction: {kind: conformal}", "oracle needs prediction: {kind: oracle}"),
        ("kv: {reserve: 0.1}", "admit: prompt looks at no future"),
        ("preemption: {protected_share: 0.1}", "without max_per_sequence nobody is protected"),
    ],
)
def test_what_would_have_no_effect_or_no_meaning_is_refused(more: str, sentence: str) -> None:
    assert sentence in refusal(more)


def test_a_prediction_that_nothing_goes_by_is_refused() -> None:
    text = HEAD.replace("most_predicted_output", "arrival").replace("predicted_output", "arrival")
    for more in ("prediction: {kind: conformal}", "kv: {estimate: upper}"):
        with pytest.raises(PolicyError, match="nothing in this policy goes by predicted lengths"):
            load_policy((text + more).encode())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("prediction: {kind: oracle}", "prediction.kind: oracle is for replays: a live service does not know"),
        ("prediction: {kind: bucket, borders: [10]}", "prediction.kind: bucket is for replays"),
        ("kv: {estimate: oracle}", "kv.estimate: oracle is for replays"),
        ("kv: {convention: paper}", "kv.convention: paper is for replays"),
        ("preemption: {resume: restart}", "preemption.resume: restart is for replays: a reader would get"),
    ],
)
def test_what_only_a_replay_can_follow_is_refused_for_a_live_service(more: str, sentence: str) -> None:
    load_policy((HEAD + more).encode())
    assert sentence in refusal(more, load_live_policy)


def test_an_explanation_tells_how_lengths_are_known_and_used() -> None:
    kinds = {
        "prediction: {coverage: {lower: 0.9}}": "90% end above its lower bound, 95% below its upper bound.",
        "prediction: {kind: constant, interval: {lower: 1, upper: 20}}": "every output: 1 to 20 tokens.",
        "prediction: {kind: distribution, prior: {kind: geometric, mean: 9}}": "quantiles of a geometric distribution",
        "prediction: {kind: bucket, borders: [10, 20]}": "the borders are 10, 20 tokens",
        "prediction: {kind: oracle, error: 0.5}": "The true length of each output, 50% around it.",
        "prediction: {survive: {support: [20, 400]}}": "one of 20, 400 tokens gives its blocks back and waits",
    }
    for more, sentence in kinds.items():
        assert sentence in explain(load_policy((HEAD + more).encode()))
    text = explain(
        load_policy(
            (
                HEAD
                + "kv: {admit: future, estimate: upper, reserve: 0.1}\n"
                + "prediction: {kind: distribution, prior: {kind: geometric, mean: 9}, survive: {quantile: 0.1}}\n"
                + "preemption: {victim: [least_predicted_output, self], requeue: ordered, max_per_sequence: 4}\n"
            ).encode()
        )
    )
    for sentence in (
        "would fit to their predicted ends into 90% of the pool.",
        "the sequence with the shortest predicted output, else the one that needs the block gives its blocks back",
        "waits among the others, in their order.",
        "Who gave them back 4 times, or had aged when it started, is spared while others are left",
        "The policy goes by the upper bound of it.",
        "expected to end at the 10% quantile of what is left.",
    ):
        assert sentence in text
    assert "Output lengths" not in explain(
        load_policy((HEAD.replace("most_predicted_output", "arrival").replace("predicted_output", "arrival")).encode())
    )

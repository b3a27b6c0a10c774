"""The section `fairness`: what loads, what does not and why, and how it reads in words."""

from typing import Any

import pytest
import yaml

from policies.document.diff import changes
from policies.document.explain import explain
from policies.document.fairness import Fairness, LengthPredictor, Quadratic, Table, Tokens, WeightedTokens
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from policies.document.schema import Policy

REST = """version: 1
name: test
classes: [{name: all, ttft_s: 1, tbt_s: 0.1}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
fairness:
"""


def text(fairness: str) -> bytes:
    return (REST + "".join(f"  {line}\n" for line in fairness.splitlines())).encode()


def loaded(fairness: str) -> Fairness:
    return load_live_policy(text(fairness)).fairness


def problem(fairness: str, *, live: bool = False) -> str:
    with pytest.raises(PolicyError) as raised:
        (load_live_policy if live else load_policy)(text(fairness))
    return "\n".join(str(one) for one in raised.value.problems)


def test_a_cost_is_told_by_its_kind_or_by_its_keys() -> None:
    assert loaded("cost: {kind: weighted_tokens, output: 3}").cost == WeightedTokens(output=3.0)
    assert loaded("cost: {prompt: 2, output: 3}").cost == WeightedTokens(2.0, 3.0)
    assert loaded("cost: {kind: tokens}").cost == Tokens()
    assert loaded("cost: {a: 1, b: 2}").cost == Quadratic(a=1.0, b=2.0)
    table = "cost: {kind: table, prompt_tokens: [1, 9], output_tokens: [0, 5], costs: [[1, 2], [3, 4]]}"
    assert loaded(table).cost == Table((1, 9), (0, 5), ((1.0, 2.0), (3.0, 4.0)))


@pytest.mark.parametrize(
    ("fairness", "said"),
    [
        (
            "cost: {}",
            '6:9: fairness.cost: the key "kind" is missing; allowed: one of weighted_tokens, tokens, quadratic',
        ),
        ("cost: {kind: qadratic}", '6:16: fairness.cost.kind: the text "qadratic" does not fit'),
        ("cost: {kind: qadratic}", 'did you mean "quadratic"?'),
        ("cost: {kind: [tokens]}", "fairness.cost.kind: a list does not fit; allowed: one of weighted_tokens"),
        ("cost: {kind: tokens, kind: tokens}", 'the key "kind" is here twice'),
        ("cost: {kind: tokens, prompt: 1}", 'unknown key "prompt"; allowed: kind'),
        ("cost: {kind: quadratic, a: 1}", 'fairness.cost: the key "b" is missing; allowed: a number'),
        (
            "cost: 5",
            "the number 5 does not fit; allowed: a mapping with the keys kind: weighted_tokens, prompt, output",
        ),
        ("cost: {kind: quadratic, a: 1, b: 1, c: -1}", "a further prompt token would make some requests cheaper"),
        ("cost: {kind: quadratic, a: 1, b: -1}", "a further output token would make some requests cheaper"),
        ("cost: {kind: quadratic, a: 1, b: 1, d: -1}", "a further output token would make some requests cheaper"),
        ("cost: {kind: quadratic, a: 0, b: 0}", "tokens cost nothing; at least one of a, b, c and d above 0"),
        ("cost: {kind: quadratic, a: .nan, b: 0}", ".nan is out of bounds"),
        ("cost: {kind: weighted_tokens, prompt: 0}", "0 is out of bounds; allowed: a number, above 0"),
        ("levels: []", "[] does not go down from the tenant; allowed: [tenant], [tenant, project]"),
        ("levels: [key]", "[key] does not go down from the tenant"),
        ("levels: [tenant, key, project]", "[tenant, key, project] does not go down from the tenant"),
        ("predictor: {}", "fairness.predictor: the predictor is not one of three; {mean_last: COUNT}"),
        ("predictor: {mean_last: 5, ema: 0.5}", "the predictor is not one of three"),
        ("predictor: {mean_last: 0}", "0 is out of bounds; allowed: a whole number, at least 1"),
        ("predictor: median", 'the text "median" does not fit'),
        ("reserve: predicted", "reserve: predicted has nothing to go by; add a predictor, such as {mean_last: 5}"),
        ("quantum_tokens: 5", "fairness.quantum_tokens: kind: vtc has no turns; remove it, or say kind: drr"),
        ("weights: {gold: 4}", 'unknown key "weights"'),
    ],
)
def test_a_mistake_is_said_with_its_place_and_what_is_right(fairness: str, said: str) -> None:
    assert said in problem(fairness)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"prompt_tokens": [9, 1]}, "fairness.cost.prompt_tokens: the lengths do not ascend"),
        ({"output_tokens": [1, 5]}, "fairness.cost.output_tokens[0]: the first output length is 1"),
        ({"costs": [[1, 2]] * 3}, "fairness.cost.costs: 3 rows for 2 prompt lengths"),
        ({"costs": [[1, 2], [3, 4, 5]]}, "fairness.cost.costs[1]: 3 costs for 2 output lengths"),
        ({"costs": [[1, 2], [3, 2]]}, "fairness.cost.costs[1][1]: the cost falls from 3 to 2 for more output"),
        ({"costs": [[1, 5], [3, 4]]}, "fairness.cost.costs[1][1]: the cost falls from 5 to 4 for a longer prompt"),
        ({"costs": [[1, -2], [3, 4]]}, "-2 is out of bounds; allowed: a number, at least 0"),
        ({"prompt_tokens": [1]}, "fairness.cost.prompt_tokens: the list has only 1; allowed: a list of at least 2 of"),
    ],
)
def test_a_table_that_no_cost_can_be_read_from_is_refused(edit: dict[str, Any], said: str) -> None:
    table = {"kind": "table", "prompt_tokens": [1, 9], "output_tokens": [0, 5], "costs": [[1, 2], [3, 4]], **edit}
    assert said in problem(yaml.safe_dump({"cost": table}, default_flow_style=None))


@pytest.mark.parametrize("fairness", ["predictor: oracle", "predictor: {noisy_oracle: 0.5}", "reserve: occupancy"])
def test_what_only_a_replay_knows_loads_for_a_replay_alone(fairness: str) -> None:
    load_policy(text(fairness))
    assert "is for replays: nobody knows yet how long an output will be" in problem(fairness, live=True)


def test_a_policy_says_in_words_who_is_next_and_what_is_charged() -> None:
    def words(fairness: str) -> str:
        return explain(load_policy(text(fairness)))

    default = words("kind: vtc")
    assert "The waiting tenant that was served least for its weight goes next; what it did not ask for" in default
    assert "So do the projects of a tenant and the keys of a project among one another" in default
    assert "A prompt token costs 1, one found in the prefix cache nothing, an output token 2." in default
    assert "What an idle tenant owes is forgotten after 3600 s." in default
    assert "for all the time it has been known" in words("kind: lcf")
    assert "take turns of a twentieth of the window in cost" in words("kind: drr")
    assert "take turns of 12.5 in cost" in words("kind: drr\nquantum_tokens: 12.5")
    assert "So do the keys of a tenant among" in words("levels: [tenant, key]")
    assert "So do" not in words("levels: [tenant]")
    assert "one found in the prefix cache 0.5," in words("cost: {prompt: 2, cached_prompt: 0.25}")
    assert "Every token costs 1" in words("cost: {kind: tokens}")
    assert "cost 1 p + 2 q + 0.5 p q + 0 q^2 + 0." in words("cost: {a: 1, b: 2, c: 0.5}")
    assert "once for each step that it holds them" in words("cost: {kind: kv_token_time}")
    table = "cost: {kind: table, prompt_tokens: [1, 9], output_tokens: [0, 5], costs: [[1, 2], [3, 4]]}"
    assert "for its prompt (1 to 9 tokens) and output (0 to 5)" in words(table)
    predictions = {
        "declared": "as much output as it may have",
        "oracle": "the output that it will have",
        "{mean_last: 5}": "the mean output of its tenant's last 5",
        "{ema: 0.2}": "its tenant's mean output, in which the newest has weight 0.2,",
        "{noisy_oracle: 0.5}": "the output that it will have, up to 50% off,",
    }
    for predictor, said in predictions.items():
        assert f"A request is charged {said} at once" in words(f"predictor: {predictor}")
    occupied = words("reserve: occupancy\nwindow_tokens: 10000\nadmit_every_steps: 10")
    assert "In flight at most: 10000 tokens at a time (at the peak of what all will hold), and 1000" in occupied
    assert "After a release 10 decode steps pass before the next." in occupied
    assert "2 times what the KV pool holds (prompt and predicted output)" in words(
        "{window_tokens: {pools: 2}, reserve: predicted, predictor: {ema: 0.5}}"
    )


def test_a_change_of_cost_or_predictor_shows_both() -> None:
    def policy(fairness: str) -> Policy:
        return load_policy(text(fairness))

    assert changes(policy("cost: {prompt: 1}"), policy("cost: {prompt: 2}")) == ["fairness.cost.prompt: 1.0 -> 2.0"]
    (cost,) = changes(policy("kind: vtc"), policy("cost: {kind: tokens}"))
    assert cost == "fairness.cost: {'kind': 'weighted_tokens'} -> {'kind': 'tokens'}"
    (predictor,) = changes(policy("predictor: none"), policy("predictor: {mean_last: 5}"))
    assert predictor == "fairness.predictor: none -> {'mean_last': 5}"
    assert loaded("predictor: {mean_last: 5}").predictor == LengthPredictor(mean_last=5)

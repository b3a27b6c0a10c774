"""`limits`: what may be written, what it compiles to and how it is said."""

from typing import Any

import pytest
import yaml

from policies.admission.limits.rules import LimitRule
from policies.document.compile import compile_admission
from policies.document.diff import changes
from policies.document.explain import explain
from policies.document.loading import load_policy
from policies.document.problems import PolicyError

CLASSES = [{"name": "paid", "ttft_s": 0.5, "tbt_s": 0.1}, {"name": "free", "ttft_s": 5.0, "tbt_s": 0.5}]


def document(*limits: dict[str, Any]) -> bytes:
    policy = {
        "version": 1,
        "name": "test",
        "classes": CLASSES,
        "batching": {"stages": [{"decode": {}}, {"prefill": {"from": "waiting"}}]},
        "limits": list(limits),
    }
    return yaml.safe_dump(policy, sort_keys=False).encode()


def requests(**more: Any) -> dict[str, Any]:
    return {"scope": "key", "dimension": "requests", "rate_per_min": 60, **more}


def tokens(**more: Any) -> dict[str, Any]:
    return {"scope": "tenant", "dimension": "total_tokens", "rate_per_day": 1000, **more}


WRONG = [
    ([{"scope": "key", "dimension": "requests"}], "limits[0]", "needs a rate"),
    ([requests(rate_per_day=5)], "limits[0].rate_per_day", "rate_per_min is given too"),
    ([requests(max=5)], "limits[0].max", "no max"),
    ([requests(algorithm="sliding_log", burst=5)], "limits[0].burst", "a sliding log has no burst"),
    ([requests(algorithm="sliding_log", rate_per_min=5001)], "limits[0].rate_per_min", "5000 at most; lower it, or"),
    ([requests(algorithm="gauge")], "limits[0].algorithm", "allowed: one of gcra, sliding_log, token_bucket"),
    ([{"scope": "key", "dimension": "queued"}], "limits[0]", "add max: COUNT"),
    ([{"scope": "key", "dimension": "queued", "max": 0}], "limits[0].max", "at least 1"),
    ([{"scope": "key", "dimension": "concurrency", "max": 5, "burst": 5}], "limits[0].burst", "has no burst"),
    (
        [{"scope": "key", "dimension": "concurrency", "max": 5, "algorithm": "gcra"}],
        "limits[0].algorithm",
        "has no alg",
    ),
    ([{"scope": "key", "dimension": "concurrency", "rate_per_min": 5}], "limits[0].rate_per_min", "and give max"),
    ([requests(when={})], "limits[0].when", "it matches everybody"),
    ([requests(when={"class": "payd"})], "limits[0].when.class", 'did you mean "paid"?'),
    ([requests(scope="org")], "limits[0].scope", "one of class, key, model, project, tenant"),
    ([requests(scope="class", when={"tier": "gold"})], "limits[0].when.tier", "is shared by all tenants"),
    ([requests(scope="model", when={"tenant": "acme"})], "limits[0].when.tenant", "is shared by all tenants"),
    ([requests(), requests(rate_per_min=5)], "limits[1]", "limits[0] takes all that it would match"),
    ([requests(), requests(when={"tier": "gold"})], "limits[1]", "put the narrower limit first"),
    (
        [requests(when={"tier": "gold"}), requests(when={"tier": "gold", "tenant": "acme"})],
        "limits[1]",
        "limits[0] takes all",
    ),
]


@pytest.mark.parametrize(("limits", "path", "words"), WRONG)
def test_a_limit_that_contradicts_itself_or_another_is_named(
    limits: list[dict[str, Any]], path: str, words: str
) -> None:
    with pytest.raises(PolicyError) as error:
        load_policy(document(*limits), "p.yaml")
    assert any(f" {path}: " in line and words in line for line in str(error.value).splitlines()), str(error.value)


def test_limits_that_are_for_others_of_another_period_or_mode_stand_beside_each_other() -> None:
    load_policy(
        document(
            requests(when={"tier": "gold"}),
            requests(when={"class": "paid"}),
            requests(),
            requests(mode="only_when_saturated"),
            {"scope": "key", "dimension": "requests", "rate_per_day": 60},
            requests(scope="project"),
        )
    )


def test_defaults_are_gcra_for_requests_a_bucket_for_tokens_and_a_burst_of_the_rate() -> None:
    limits = (
        requests(),
        tokens(burst=10),
        requests(scope="class", algorithm="sliding_log", when={"class": "paid"}),
        {"scope": "model", "dimension": "queued", "max": 7, "mode": "only_when_saturated"},
    )
    assert compile_admission(load_policy(document(*limits))).limits == (
        LimitRule("key", "requests", "gcra", 60, 60, 60),
        LimitRule("tenant", "total_tokens", "token_bucket", 1000, 86_400, 10),
        LimitRule("class", "requests", "sliding_log", 60, 60, 60, slo_class="paid"),
        LimitRule("model", "queued", "gauge", 7, 60, 7, "only_when_saturated"),
    )


def test_every_limit_is_a_sentence_and_a_change_is_told_with_them() -> None:
    old = load_policy(document())
    new = load_policy(
        document(
            requests(when={"tier": "gold", "tenant": "acme"}),
            requests(scope="model", algorithm="sliding_log"),
            tokens(mode="only_when_saturated", when={"class": "paid"}, burst=10),
            {"scope": "project", "dimension": "concurrency", "max": 3},
        )
    )
    sentences = [
        "Each key (tier gold, tenant acme): at most 60 requests a minute, 60 at once.",
        "All requests together: at most 60 requests a minute, counted back from now.",
        "Each tenant (class paid): at most 1000 tokens of prompts and outputs a day, 10 at once while requests wait.",
        "Each project: at most 3 unfinished requests at once.",
    ]
    assert "\n".join(["Limits:", *(f"  {one}" for one in sentences)]) in explain(new)
    assert "Limits:\n  No limits on single tenants.\n" in explain(old)
    assert changes(old, new) == [f"limits: {' '.join(sentences)}"]
    assert changes(new, old) == ["limits: No limits on single tenants."]

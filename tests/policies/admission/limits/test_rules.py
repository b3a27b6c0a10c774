"""Which limits a request is held to, and how much it takes of each."""

from typing import Any

from policies.admission.limits.rules import Asked, LimitRule, items_of, items_of_a_mistake

HARD, SATURATED = ("hard",), ("hard", "only_when_saturated")


def asked(**more: Any) -> Asked:
    given: dict[str, Any] = {"project": "web", "key": "k1", "slo_class": "paid", **more}
    return Asked("acme", "gold", prompt_tokens=10, output_tokens=30, **given)


def rule(scope: Any = "tenant", dimension: Any = "requests", limit: int = 60, **more: Any) -> LimitRule:
    return LimitRule(scope, dimension, "gcra", limit, 60, limit, **more)


def test_each_scope_has_its_subject_and_each_dimension_its_amount() -> None:
    rules = (
        rule("key", "requests"),
        rule("project", "prompt_tokens"),
        rule("tenant", "output_tokens"),
        rule("class", "total_tokens"),
        rule("model", "concurrency"),
    )
    found = [(item.subject, item.amount) for item in items_of(rules, asked(), HARD)]
    assert found == [("k1", 1), ("acme/web", 10), ("acme", 30), ("paid", 40), ("model", 1)]


def test_without_a_key_the_project_shares_its_limit() -> None:
    assert items_of((rule("key"),), asked(key=""), HARD)[0].subject == "acme/web"


def test_the_first_limit_that_agrees_is_the_one_and_others_of_the_same_kind_are_not_looked_at() -> None:
    rules = (
        rule(limit=1, tier="silver"),
        rule(limit=2, tenant="acme"),
        rule(limit=3),
        rule(limit=4, mode="only_when_saturated"),
        rule("key", limit=5),
    )
    assert [item.limit for item in items_of(rules, asked(), HARD)] == [2, 5]
    assert [item.limit for item in items_of(rules, asked(), SATURATED)] == [2, 4, 5]


def test_a_limit_for_a_class_has_a_name_of_its_own() -> None:
    rules = (rule(slo_class="paid"), rule(slo_class="free"))
    paid, free = (items_of(rules, asked(slo_class=name), HARD)[0] for name in ("paid", "free"))
    assert (paid.slo_class, free.slo_class) == ("paid", "free")
    assert paid.name != free.name


def test_what_takes_nothing_of_a_limit_is_not_held_to_it() -> None:
    embedding = Asked("acme", "gold", "web", "k1", "paid", prompt_tokens=10)
    assert items_of((rule(dimension="output_tokens"),), embedding, HARD) == ()


def test_a_mistake_takes_one_request_of_its_caller_and_nothing_of_what_it_shares() -> None:
    rules = (rule("model"), rule("class"), rule("tenant"), rule("tenant", "total_tokens"), rule("key", "concurrency"))
    assert [(item.scope, item.dimension) for item in items_of_a_mistake(rules, asked())] == [("tenant", "requests")]

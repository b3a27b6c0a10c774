"""From what a request is to the service level it gets."""

import pytest

from policies.admission.classify import Classifier
from policies.document.schema import ClassifyRule, Match, SloClass

CLASSES = tuple(SloClass(name, 1.0, 0.1) for name in ("gold", "silver", "bronze"))
RULES = (
    ClassifyRule("gold", Match(tier="paid", service_tier="priority")),
    ClassifyRule("bronze", Match(tenant="scraper")),
    ClassifyRule("silver", Match(tier="paid")),
)


def classify(tier: str, *, tenant: str = "acme", service_tier: str | None = None, allowed: tuple[str, ...] = ()) -> str:
    classifier = Classifier(CLASSES, RULES)
    return classifier.classify(tenant=tenant, tier=tier, service_tier=service_tier, allowed=allowed)


def test_the_first_rule_whose_every_condition_agrees_wins() -> None:
    assert classify("paid", service_tier="priority") == "gold"
    assert classify("paid") == "silver"
    assert classify("paid", tenant="scraper") == "bronze"


def test_without_a_matching_rule_it_is_the_last_class() -> None:
    assert classify("free") == "bronze"
    assert Classifier(CLASSES, ()).classify(tenant="a", tier="b", service_tier=None, allowed=()) == "bronze"


def test_a_service_tier_that_no_rule_names_is_ignored() -> None:
    assert classify("paid", service_tier="auto") == "silver"


@pytest.mark.parametrize(
    ("allowed", "given"),
    [
        (("gold", "silver"), "silver"),
        (("gold", "bronze"), "bronze"),
        (("gold",), "gold"),
        (("unknown",), "bronze"),
        (("unknown", "gold"), "gold"),
    ],
)
def test_a_class_the_tenant_may_not_use_becomes_the_next_one_below_or_the_nearest_above(
    allowed: tuple[str, ...], given: str
) -> None:
    assert classify("paid", allowed=allowed) == given


def test_a_tenant_may_not_be_lifted_above_the_class_its_rule_gives() -> None:
    assert classify("paid", service_tier="priority", allowed=("silver", "bronze")) == "silver"

"""Which service level a request gets.

Knows the policy's classes and rules, the tenant's tier and what the request asked for; does not know tokens or queues.
"""

from policies.document.schema import ClassifyRule, Match, SloClass


class Classifier:
    """First matching rule wins; a tenant's allowed classes have the last word."""

    def __init__(self, classes: tuple[SloClass, ...], rules: tuple[ClassifyRule, ...]) -> None:
        self._names = [slo_class.name for slo_class in classes]
        """By priority, the most important first."""
        self._rules = rules

    def classify(self, *, tenant: str, tier: str, service_tier: str | None, allowed: tuple[str, ...]) -> str:
        """Name of the class of a request.

        Without a matching rule it is the last class. A class that the tenant may not use becomes the most important
        allowed one below it; where every allowed class is above it, the least important of those. Allowed names that
        this policy does not have are ignored, and a tenant left with none gets the last class.
        """
        name = self._by_rule(tenant, tier, service_tier)
        if not allowed or name in allowed:
            return name
        usable = [known for known in self._names if known in allowed]
        if not usable:
            return self._names[-1]
        rank = self._names.index(name)
        return next((known for known in usable if self._names.index(known) > rank), usable[-1])

    def _by_rule(self, tenant: str, tier: str, service_tier: str | None) -> str:
        for rule in self._rules:
            if rule.when is None or _agrees(rule.when, tenant, tier, service_tier):
                return rule.class_
        return self._names[-1]


def _agrees(when: Match, tenant: str, tier: str, service_tier: str | None) -> bool:
    return (
        when.tier in (None, tier)
        and when.tenant in (None, tenant)
        # A service tier that no rule names (clients send `auto`, `default`) matches none: it is not an error.
        and when.service_tier in (None, service_tier)
    )

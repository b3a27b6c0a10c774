"""Which limits a request is held to, and how much it takes of each.

Knows who asks and how many tokens; does not know what is left or what waits. `policies/document/compile.py` makes the
rules; nothing here reads a document.
"""

from msgspec import Struct

from policies.admission.limits.items import Algorithm, Dimension, LimitItem, Mode, Scope

OUTPUT_DIMENSIONS = ("output_tokens", "total_tokens")
GAUGES = ("concurrency", "queued")


class Asked(Struct, frozen=True):
    """What limits know of a request."""

    tenant: str
    tier: str
    project: str
    key: str
    slo_class: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Declared or expected, over all choices."""

    def subject(self, scope: Scope) -> str:
        """Whose limit of a scope this request is held to."""
        match scope:
            case "tenant":
                return self.tenant
            case "project":
                return f"{self.tenant}/{self.project}"
            case "key":
                # Without keys, as in a replay, whoever shares the project shares the limit.
                return self.key or f"{self.tenant}/{self.project}"
            case "class":
                return self.slo_class
            case "model":
                return "model"

    def amount(self, dimension: Dimension) -> int:
        """What it takes of a dimension."""
        match dimension:
            case "prompt_tokens":
                return self.prompt_tokens
            case "output_tokens":
                return self.output_tokens
            case "total_tokens":
                return self.prompt_tokens + self.output_tokens
            case _:
                return 1


class LimitRule(Struct, frozen=True):
    """One limit of the policy."""

    scope: Scope
    dimension: Dimension
    algorithm: Algorithm
    limit: int
    period_s: int
    burst: int
    mode: Mode = "hard"
    tier: str | None = None
    tenant: str | None = None
    slo_class: str | None = None
    """With `tier` and `tenant`: for whom; None: for everybody."""

    def agrees(self, asked: Asked) -> bool:
        """Whether the limit is for this request."""
        return (
            self.tier in (None, asked.tier)
            and self.tenant in (None, asked.tenant)
            and self.slo_class in (None, asked.slo_class)
        )

    def item(self, asked: Asked) -> LimitItem:
        """What the request takes of it."""
        return LimitItem(
            self.scope,
            asked.subject(self.scope),
            self.dimension,
            self.algorithm,
            asked.amount(self.dimension),
            self.limit,
            self.period_s,
            self.burst,
            self.slo_class or "",
            self.mode,
        )


def items_of(rules: tuple[LimitRule, ...], asked: Asked, modes: tuple[Mode, ...]) -> tuple[LimitItem, ...]:
    """What a request takes of every limit of these modes: of several that differ only in whom they are for, the first
    that is for it.
    """
    found: dict[tuple[Scope, Dimension, int, Mode], LimitItem] = {}
    for rule in rules:
        alike = (rule.scope, rule.dimension, rule.period_s, rule.mode)
        if rule.mode in modes and alike not in found and rule.agrees(asked):
            found[alike] = rule.item(asked)
    return tuple(item for item in found.values() if item.amount)


def items_of_a_mistake(rules: tuple[LimitRule, ...], asked: Asked) -> tuple[LimitItem, ...]:
    """What a request takes that will be answered with a 400: one of its caller's own requests, nothing of what it
    shares with others.
    """
    callers = tuple(
        rule for rule in rules if rule.dimension == "requests" and rule.scope in ("key", "project", "tenant")
    )
    return items_of(callers, asked, ("hard",))

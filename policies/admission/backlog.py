"""What waits, by the class it would be released under now. Reads the core, never changes it."""

from collections import Counter

from policies.admission.core import AdmissionCore


def queued_by_class(core: AdmissionCore) -> dict[str, int]:
    """Requests that wait, by class; every class of the policy is there.

    Raises:
        RuntimeError: the core has no policy yet.
    """
    rules = core.rules
    kinds: Counter[tuple[str, str, str | None, tuple[str, ...]]] = Counter()
    examples = {}
    for queued in core.queue.waiting.values():
        kind = (queued.tenant, queued.tier, queued.service_tier, queued.allowed_classes)
        kinds[kind] += 1
        examples[kind] = queued
    by_class = dict.fromkeys((each.name for each in rules.classes), 0)
    for kind, count in kinds.items():
        by_class[rules.class_of(examples[kind])] += count
    return by_class

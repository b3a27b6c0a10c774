"""Policy text to a checked `schema.Policy`, or every problem with its line, column and the nearest right name.

Pure: whoever reads the file passes its bytes and its name.
"""

from collections.abc import Callable

from msgspec import inspect

from policies.document.fairness_rules import check_live_fairness
from policies.document.memory_rules import check_live
from policies.document.problems import PolicyError
from policies.document.reading import Reading
from policies.document.rules import check_policy
from policies.document.schema import PLANNED_SECTIONS, Policy
from policies.document.tree import parse

_POLICY = inspect.type_info(Policy)


def load_live_policy(text: bytes, file: str = "policy") -> Policy:
    """The policy that a YAML document describes, for a service: it asks for nothing that only a replay knows or allows.

    Raises:
        PolicyError: the document cannot be used, or not here.
    """
    return _load(text, file, (check_policy, check_live, check_live_fairness))


def load_policy(text: bytes, file: str = "policy") -> Policy:
    """The policy that a YAML document describes, for a replay, or where it was checked before.

    Args:
        text: the document, UTF-8.
        file: what error messages call it.

    Raises:
        PolicyError: the document cannot be used; `problems` has everything wrong with it.
    """
    return _load(text, file, (check_policy,))


def _load(text: bytes, file: str, checks: tuple[Callable[[Reading], None], ...]) -> Policy:
    reading = Reading(parse(text, file), _POLICY, file, planned=PLANNED_SECTIONS)
    for check in checks:
        check(reading)
    if reading.problems:
        raise PolicyError(reading.problems)
    policy: Policy = reading.get(())
    return policy

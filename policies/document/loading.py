"""Policy text to a checked `schema.Policy`, or every problem with its line, column and the nearest right name.

Pure: whoever reads the file passes its bytes and its name.
"""

from msgspec import inspect

from policies.document.problems import PolicyError
from policies.document.reading import Reading
from policies.document.rules import check_policy
from policies.document.schema import PLANNED_SECTIONS, Policy
from policies.document.tree import parse

_POLICY = inspect.type_info(Policy)


def load_policy(text: bytes, file: str = "policy") -> Policy:
    """The policy that a YAML document describes.

    Args:
        text: the document, UTF-8.
        file: what error messages call it.

    Raises:
        PolicyError: the document cannot be used; `problems` has everything wrong with it.
    """
    reading = Reading(parse(text, file), _POLICY, file, planned=PLANNED_SECTIONS)
    check_policy(reading)
    if reading.problems:
        raise PolicyError(reading.problems)
    policy: Policy = reading.get(())
    return policy

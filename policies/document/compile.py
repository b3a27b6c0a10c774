"""From a policy document to the objects that decide: one row for each kind.

Owns the mapping from names in the document to working code. Compiling a valid document cannot fail.
"""

from math import floor

from msgspec import Struct

from policies.admission.classify import Classifier
from policies.admission.cost import Prices, prices
from policies.admission.fairness import SELECTIONS, Select
from policies.document.schema import Policy, Queue

SELECT_REASONS = {"vtc": "least counter", "fcfs": "oldest"}


class AdmissionRules(Struct, frozen=True):
    """What the admission core decides by."""

    classifier: Classifier
    prices: Prices
    select: Select
    select_reason: str
    queue: Queue
    max_requests: int
    declared_window_tokens: int | None
    """None: what the KV pool holds, less the watermark."""
    watermark: float

    def window_tokens(self, kv_tokens: int) -> int:
        """Tokens that may be in flight over executors whose pools hold `kv_tokens`."""
        if self.declared_window_tokens is not None:
            return self.declared_window_tokens
        return kv_tokens - floor(self.watermark * kv_tokens)


def compile_admission(policy: Policy) -> AdmissionRules:
    """The sections `classes`, `classify`, `fairness` and `queue`, and the watermark of `kv`."""
    fairness = policy.fairness
    return AdmissionRules(
        classifier=Classifier(policy.classes, policy.classify),
        prices=prices(fairness.cost),
        select=SELECTIONS[fairness.kind],
        select_reason=SELECT_REASONS[fairness.kind],
        queue=policy.queue,
        max_requests=fairness.max_requests,
        declared_window_tokens=None if fairness.window_tokens == "auto" else fairness.window_tokens,
        watermark=policy.kv.watermark,
    )

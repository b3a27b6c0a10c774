"""From a policy document to the objects that decide: one row for each kind.

Owns the mapping from names in the document to working code. Compiling a valid document cannot fail.
"""

from policies.admission.classify import Classifier
from policies.admission.cost import prices
from policies.admission.fairness import SELECTIONS
from policies.admission.rules import AdmissionRules
from policies.document.schema import Policy

SELECT_REASONS = {"vtc": "least counter", "fcfs": "oldest"}


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

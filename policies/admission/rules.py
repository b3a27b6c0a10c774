"""What the admission core decides by: a compiled policy.

Owns the shape of the rules. `policies/document/compile.py` makes them; nothing here reads a document.
"""

from math import floor

from msgspec import Struct

from policies.admission.classify import Classifier
from policies.admission.cost import Cost
from policies.admission.limits.rules import LimitRule
from policies.admission.nodes import Queued
from policies.admission.order import Order
from policies.admission.pace import Pace
from policies.admission.predictors import Predictor
from policies.admission.reserve import Reserve
from policies.document.fairness import Fairness
from policies.document.memory import Prediction
from policies.document.schema import Queue, SloClass
from policies.events import Arrived


class AdmissionRules(Struct, frozen=True):
    """What the admission core decides by."""

    name: str
    """Of the policy."""
    classes: tuple[SloClass, ...]
    ttft_s: dict[str, float]
    """Promised to a class."""
    classifier: Classifier
    fairness: Fairness
    """As the document has it: what is equal in the next revision goes on with what it remembers."""
    cost: Cost
    order: Order
    """New, and so without a memory."""
    predictor: Predictor
    """New, and so without a memory."""
    reserve: Reserve
    prediction: Prediction
    """Of the length of requests that declare none."""
    pace: Pace
    """New, and so without a memory."""
    queue: Queue
    max_requests: int
    declared_window_tokens: int | None
    """None: what the KV pool holds, less the watermark, times `window_pools`."""
    window_pools: float
    narrows_window: bool
    """From what the KV pool holds to the smallest that keeps its throughput."""
    watermark: float
    late_after_s: float | None
    """For how long requests must have been late before one that would be is refused; None: it never is."""
    starts_shortest_first: bool
    """Whether the scheduler starts what is released by the length of its prompt."""
    limits: tuple[LimitRule, ...] = ()

    def window_tokens(self, kv_tokens: int) -> int:
        """Tokens that may be in flight over executors whose pools hold `kv_tokens`."""
        if self.declared_window_tokens is not None:
            return self.declared_window_tokens
        return floor(self.window_pools * (kv_tokens - floor(self.watermark * kv_tokens)))

    def class_of(self, asked: Arrived | Queued) -> str:
        """The class of a request at this moment."""
        return self.classifier.classify(
            tenant=asked.tenant, tier=asked.tier, service_tier=asked.service_tier, allowed=asked.allowed_classes
        )

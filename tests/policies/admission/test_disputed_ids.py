from pathlib import Path

from policies.admission.core import AdmissionCore
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, Started, TokensProduced

POLICY = Path(__file__).parents[3] / "policies" / "fcfs.yaml"


def test_requests_that_claim_the_same_sequence_are_settled_each_once() -> None:
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, POLICY.read_bytes()), 0.0)
    core.handle(CapacityChanged(1, 4096, 512), 0.0)
    for event in (
        Arrived(126, "acme", "free", 4, 4, num_choices=3),
        Arrived(128, "acme", "free", 4, 4, num_choices=2),
        TokensProduced([126, 127, 128, 129]),
        RequestFinished(126, 3),
        RequestFinished(128, 2),
    ):
        core.handle(event, 1.0)
        core.check()
    assert core.ledger.in_flight == {}
    assert core.window.reserved_tokens == 0

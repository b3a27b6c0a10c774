"""Records of a gateway, for tests: step n lies at n x 100 ns."""

import numpy as np

from services.telemetry.records import Began, Let, Step


def began(request: int, num_choices: int = 1) -> Began:
    """A request that was received at 10 ns."""
    return Began(
        request=request,
        answer_id=f"answer-{request}",
        trace_id=b"t" * 16,
        parent_id=b"",
        span_id=b"s" * 8,
        operation="chat",
        model="demo",
        tenant="acme",
        project="web",
        prompt_tokens=5,
        max_output_tokens=64,
        num_choices=num_choices,
        received_ns=10,
        tokenized_ns=20,
    )


def let(request: int) -> Let:
    """Its release."""
    return Let(request, "paid", 1, 30, 70, {"limits": 1e-8, "fairness": 2e-8})


def step(number: int, sequences: list[int], written_ns: list[int]) -> Step:
    """A step with a token for each of these."""
    at = number * 100
    return Step(
        step=number,
        executor=0,
        revision=1,
        sequences=np.array(sequences, np.int64).tobytes(),
        finish=bytes(len(sequences)),
        ready_ns=np.full(len(sequences), at, np.int64).tobytes(),
        causes=bytes(len(sequences)),
        planned_ns=at + 10,
        launched_ns=at + 20,
        computed_ns=at + 80,
        returned_ns=at + 85,
        gateway_in_ns=at + 90,
        written_ns=np.array(written_ns, np.int64).tobytes(),
    )

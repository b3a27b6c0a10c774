"""From a step's tokens to one frame for each gateway.

The per-token work of the scheduler: all but the output lists is columnar.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine.interface import Logprobs
from policies.commands import Deliver, Int64Array
from services.scheduler.executors import StepTokens
from services.scheduler.sequences import Sequences
from services.wire import TokenFrame
from services.wire_parts import LogprobColumns

GATEWAY_SHIFT = 32
"""A gateway's number is the upper 32 bits of its request and sequence ids."""


class Delivery:
    """The tokens of a step that reach readers, kept with their sequences when made."""

    def __init__(self, command: Deliver, step: StepTokens, sequences: Sequences) -> None:
        self.ids: Int64Array = step.plan.sampling[command.rows]
        """Sequences that got a token."""
        self._step = step
        self._tokens: NDArray[np.int32] = step.tokens[command.rows]
        self._finish = command.finish
        self._logprobs = None if step.logprobs is None else step.logprobs.of(command.rows)
        self.prefix_hits: list[tuple[int, int]] = []
        """As in `services.wire.TokenFrame`."""
        self._vectors = step.result.vectors
        self._causes = step.plan.causes[command.rows] if len(step.plan.causes) else step.plan.causes
        self._chunks: dict[int, bytes] = {}
        ready_ns = []
        plan, computed_ns, ended_ns = step.plan, step.result.computed_ns, step.ended_ns
        for sequence, token in zip(self.ids.tolist(), self._tokens.tolist(), strict=True):
            held = sequences.by_id[sequence]
            # The first choice of a request has its id; the others found what it computed.
            if not held.output and held.num_cached and sequence in sequences:
                self.prefix_hits.append((sequence, held.num_cached))
            if not held.output and not (held.chunks and held.chunks[-1][0] == plan.step):
                # A last piece of one token: in the plan it looks like a decode.
                held.chunks.append((plan.step, 1, plan.planned_ns, step.result.launched_ns, computed_ns))
            if held.chunks:
                self._chunks[sequence] = np.array(held.chunks, np.int64).tobytes()
                held.chunks = []
            held.output.append(token)
            held.made_ns.append(ended_ns)
            ready_ns.append(held.ready_ns)
            held.ready_ns = computed_ns
        self._ready_ns = np.array(ready_ns, np.int64)

    def frames(self) -> Iterator[tuple[int, TokenFrame]]:
        """Each gateway concerned and its frame."""
        gateways = self.ids >> GATEWAY_SHIFT
        if len(gateways) and (gateways == gateways[0]).all():
            yield int(gateways[0]), self._frame(slice(None), self._logprobs, self.prefix_hits)
            return
        for gateway in np.unique(gateways).tolist():
            rows = np.flatnonzero(gateways == gateway)
            logprobs = None if self._logprobs is None else self._logprobs.of(rows)
            hits = [hit for hit in self.prefix_hits if hit[0] >> GATEWAY_SHIFT == gateway]
            yield gateway, self._frame(rows, logprobs, hits)

    @property
    def charged(self) -> Int64Array:
        """Sequences whose token counts as output: of those that wanted an embedding it is not."""
        return self.ids[~np.isin(self.ids, list(self._vectors))] if self._vectors else self.ids

    def _frame(
        self, rows: "slice | NDArray[np.intp]", logprobs: Logprobs | None, prefix_hits: list[tuple[int, int]]
    ) -> TokenFrame:
        plan, result = self._step.plan, self._step.result
        return TokenFrame(
            step=plan.step,
            executor=self._step.executor,
            revision=plan.revision,
            sequences=self.ids[rows].tobytes(),
            tokens=self._tokens[rows].tobytes(),
            finish=self._finish[rows].tobytes(),
            ready_ns=self._ready_ns[rows].tobytes(),
            planned_ns=plan.planned_ns,
            launched_ns=result.launched_ns,
            computed_ns=result.computed_ns,
            returned_ns=result.returned_ns,
            num_prefill_tokens=plan.num_prefill_tokens,
            num_decode_tokens=plan.num_decode_tokens,
            logprobs=LogprobColumns.pack(logprobs),
            prefix_hits=prefix_hits,
            vectors=_those_of(self.ids[rows], self._vectors),
            causes=self._causes[rows].tobytes() if len(self._causes) else b"",
            chunks=_those_of(self.ids[rows], self._chunks),
            budget_use=plan.budget_use,
            kv_use=plan.kv_use,
            uncertainty_ns=self._step.uncertainty_ns,
        )


def _those_of(sequences: Int64Array, vectors: dict[int, bytes]) -> dict[int, bytes]:
    return {sequence: vectors[sequence] for sequence in sequences.tolist() if sequence in vectors} if vectors else {}

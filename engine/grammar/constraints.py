"""The sequences of an engine whose outputs keep to a grammar: which tokens each may go on with.

A mask depends on the token before it, so it cannot be made ahead; but it is made beside: from the moment a step's
tokens are on the host, in a thread, while they are delivered and while the next forward pass runs. Only sampling waits
for it. Knows neither schemas nor what the text is for.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from engine.grammar.compiler import Compiler
from engine.interface import SequenceStart
from engine.transfer import to_device

Tokens = Callable[[], NDArray[np.int32]]
"""Waits for a step's tokens to be on the host."""


class _Constraint:
    """One sequence. Its fields belong to the thread that works for it until `ready` is done."""

    __slots__ = ("bits", "error", "matcher", "ready")

    def __init__(self) -> None:
        self.matcher: LLMatcher | None = None
        self.bits: NDArray[np.int32] | None = None
        """A bit for each token that may come next, 32 in an element."""
        self.error = ""
        self.ready: Future[None] = Future()


class Constraints:
    """All sequences with a grammar. Costs nothing while there are none.

    Compiling begins with the sequence's first step, in a thread of its own. What is not ready when the sequence samples
    for the first time makes that step wait: a second at most, because the gateway refuses what takes longer to compile.
    """

    def __init__(self, compiler: Compiler, eos_ids: frozenset[int], vocabulary_size: int) -> None:
        self._compiler = compiler
        self._eos_ids = eos_ids
        self._vocabulary_size = vocabulary_size
        self._by_sequence: dict[int, _Constraint] = {}
        self._compiling = ThreadPoolExecutor(1, "grammar-compile")
        self._masking = ThreadPoolExecutor(1, "grammar-mask")
        self._library: LLExecutor | None = None
        # The first grammar must not wait for it. What fails is said of that grammar.
        self._compiling.submit(compiler.read_tokenizer)

    def __len__(self) -> int:
        return len(self._by_sequence)

    def start(self, start: SequenceStart) -> None:
        """Begin to follow a sequence, from behind the output it already has; nothing to do without a grammar."""
        self._by_sequence.pop(start.sequence, None)
        if start.grammar:
            constraint = _Constraint()
            output = np.frombuffer(start.tokens, np.int32)[start.num_prompt_tokens :].tolist()
            self._by_sequence[start.sequence] = constraint
            constraint.ready = self._compiling.submit(self._begin, constraint, start.grammar, output)

    def release(self, sequences: list[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        if self._by_sequence:
            for sequence in sequences:
                self._by_sequence.pop(sequence, None)

    def restrict(self, logits: Tensor, sequences: NDArray[np.int64]) -> dict[int, str]:
        """Set the logits [rows, vocabulary] of tokens that may not come next to -inf, in place.

        Rows of sequences without a grammar are not touched. Returns the sequences whose grammar failed, with the
        reason: their rows are left as they are and their tokens mean nothing.
        """
        rows, bits, failed = [], [], {}
        for row, sequence in self._rows(sequences):
            constraint = self._by_sequence[sequence]
            error = constraint.ready.exception()  # waits
            if error is not None or constraint.bits is None:
                failed[sequence] = f"the output cannot keep to its grammar: {error or constraint.error}"
            else:
                rows.append(row)
                bits.append(constraint.bits)
        if rows:
            where, packed = to_device([np.array(rows, np.int64), np.stack(bits)], logits.device)
            allowed = _unpacked(packed, logits.shape[-1])
            logits[where] = logits[where].masked_fill(~allowed, -torch.inf)
        return failed

    def advance(self, sequences: NDArray[np.int64], tokens: Tokens) -> None:
        """Begin the masks for the tokens after these, one for each sequence, as soon as they are on the host."""
        moved = [(row, self._by_sequence[sequence]) for row, sequence in self._rows(sequences)]
        moved = [(row, constraint) for row, constraint in moved if constraint.bits is not None]
        if moved:
            ready = self._masking.submit(self._advance, moved, tokens)
            for _, constraint in moved:
                constraint.ready = ready

    def _rows(self, sequences: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(row, sequence) of those with a grammar."""
        if not self._by_sequence:
            return []
        return [(row, sequence) for row, sequence in enumerate(sequences.tolist()) if sequence in self._by_sequence]

    # --- in the threads -------------------------------------------------------------------------------------------

    def _begin(self, constraint: _Constraint, grammar: str, output: list[int]) -> None:
        matcher = self._compiler.matcher(grammar)
        bits = allocate_token_bitmask(1, self._vocabulary_size)
        matcher.consume_tokens(output)
        fill_next_token_bitmask(matcher, bits)
        constraint.matcher = matcher
        _settle(constraint, matcher, bits[0])

    def _advance(self, moved: list[tuple[int, _Constraint]], tokens: Tokens) -> None:
        taken = tokens()
        matchers: list[tuple[LLMatcher, int]] = []
        constraints = []
        for row, constraint in moved:
            token = int(taken[row])
            matcher = constraint.matcher
            # After the end one more token may be in flight: nobody reads it, and what the end allowed will do.
            if matcher is None or token in self._eos_ids:
                continue
            matcher.consume_token(token)  # a failure stays with the matcher
            matchers.append((matcher, len(matchers)))
            constraints.append(constraint)
        if matchers:
            self._library = self._library or LLExecutor()
            bits = allocate_token_bitmask(len(matchers), self._vocabulary_size)
            fill_next_token_bitmask_par(self._library, matchers, bits)
            for constraint, (matcher, index) in zip(constraints, matchers, strict=True):
                _settle(constraint, matcher, bits[index])


def _settle(constraint: _Constraint, matcher: LLMatcher, bits: NDArray[np.int32]) -> None:
    constraint.error = " ".join(matcher.get_error().split())
    constraint.bits = None if constraint.error else bits


def _unpacked(bits: Tensor, vocabulary_size: int) -> Tensor:
    """Packed int32 [rows, elements] -> bool [rows, vocabulary]."""
    each = torch.arange(8, dtype=torch.uint8, device=bits.device)
    # Bytes of little-endian elements are in the order of the tokens, and shift four at a time of int32's.
    unpacked = (bits.view(torch.uint8).unsqueeze(-1) >> each) & 1
    return unpacked.flatten(1)[:, :vocabulary_size].bool()

"""The messages between scheduler and executor: steps, and what becomes of them.

Arrays are those of `engine.interface` as little-endian bytes. Never imports torch.
"""

from engine.interface import EngineInfo, SequenceStart
from services.wire_parts import Id, LogprobColumns, Message, Stamp, Words, check_columns, num_items

INT32_BYTES, INT64_BYTES = 4, 8


class ExecutorReady(Message, tag="executor_ready"):
    """Executor -> scheduler, after its weights are loaded and the pool is empty."""

    info: EngineInfo


class StepMessage(Message, tag="step"):
    """engine.interface.Step with arrays as bytes."""

    step: Id
    sequences: bytes
    positions: bytes
    num_tokens: bytes
    samples: bytes
    num_new_blocks: bytes
    new_blocks: bytes
    starts: list[SequenceStart]
    released: list[Id]
    copied: bytes = b""
    copies: bytes = b""

    def __post_init__(self) -> None:
        rows = {"positions": self.positions, "num_tokens": self.num_tokens, "num_new_blocks": self.num_new_blocks}
        columns = {name: (data, INT32_BYTES) for name, data in rows.items()}
        num_rows = num_items("sequences", self.sequences, INT64_BYTES)
        check_columns("a step", num_rows, {**columns, "samples": (self.samples, 1)})
        num_items("new_blocks", self.new_blocks, INT32_BYTES)
        num_copies = num_items("copied", self.copied, INT32_BYTES)
        check_columns("a step", num_copies, {"copies": (self.copies, INT32_BYTES)})


class ForgetMessage(Message, tag="forget"):
    """Scheduler -> executor: drop sequences while no step is to run."""

    released: list[Id]


class StepResult(Message, tag="step_result"):
    """engine.interface.StepOutput with arrays as bytes, and when the executor sent it."""

    step: Id
    tokens: bytes
    ended: bytes
    launched_ns: Stamp
    computed_ns: Stamp
    returned_ns: Stamp
    failed: dict[Id, Words] = {}
    """As in `StepOutput`."""
    logprobs: LogprobColumns | None = None
    """None: no row asked for any."""
    vectors: dict[Id, bytes] = {}
    """As in `StepOutput`, float32 little-endian."""

    def __post_init__(self) -> None:
        check_columns("a result", len(self.ended), {"tokens": (self.tokens, INT32_BYTES)})


class StepFailed(Message, tag="step_failed"):
    """The executor cannot go on; the sentence says why. It exits after sending this."""

    step: Id
    message: Words

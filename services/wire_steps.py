"""The messages between scheduler and executor: steps, and what becomes of them.

Arrays are those of `engine.interface` as little-endian bytes. Never imports torch.
"""

from engine.interface import EngineInfo, SequenceStart
from services.wire_parts import LogprobColumns, Message


class ExecutorReady(Message, tag="executor_ready"):
    """Executor -> scheduler, after its weights are loaded and the pool is empty."""

    info: EngineInfo


class StepMessage(Message, tag="step"):
    """engine.interface.Step with arrays as bytes."""

    step: int
    sequences: bytes
    positions: bytes
    num_tokens: bytes
    samples: bytes
    num_new_blocks: bytes
    new_blocks: bytes
    starts: list[SequenceStart]
    released: list[int]
    copied: bytes = b""
    copies: bytes = b""


class ForgetMessage(Message, tag="forget"):
    """Scheduler -> executor: drop sequences while no step is to run."""

    released: list[int]


class StepResult(Message, tag="step_result"):
    """engine.interface.StepOutput with arrays as bytes, and when the executor sent it."""

    step: int
    tokens: bytes
    ended: bytes
    launched_ns: int
    computed_ns: int
    returned_ns: int
    failed: dict[int, str] = {}
    """As in `StepOutput`."""
    logprobs: LogprobColumns | None = None
    """None: no row asked for any."""
    vectors: dict[int, bytes] = {}
    """As in `StepOutput`, float32 little-endian."""


class StepFailed(Message, tag="step_failed"):
    """The executor cannot go on; the sentence says why. It exits after sending this."""

    step: int
    message: str

"""The executors of one scheduler, as long as their streams live; each connection is a new one.

Owns their numbers, and the sentence that says why one is missing. Decides nothing.
"""

from engine.interface import EngineInfo
from services.scheduler.executors import Executor
from services.transport import Stream
from services.wire import Capacity


class Fleet:
    """Executors that are ready.

    Attributes:
        executors: by number.
        trouble: why the one that went last did; empty: one came after it.
    """

    def __init__(self) -> None:
        self.executors: dict[int, Executor] = {}
        self._of_stream: dict[Stream, Executor] = {}
        self._num_seen = 0
        self.trouble = ""

    def join(self, stream: Stream, info: EngineInfo) -> Executor:
        """One says that it is ready."""
        executor = Executor(self._num_seen, stream, info)
        self._num_seen += 1
        self.executors[executor.number] = self._of_stream[stream] = executor
        self.trouble = ""
        return executor

    def of(self, stream: Stream) -> Executor | None:
        """Who is at the other end; None: nobody who is ready."""
        return self._of_stream.get(stream)

    def leave(self, stream: Stream, reason: str) -> Executor | None:
        """Its stream is closed; None: it had not joined, or was given up."""
        executor = self._of_stream.pop(stream, None)
        if executor is not None:
            del self.executors[executor.number]
            self.trouble = self.trouble or f"executor {executor.number} has gone: {reason}"
        return executor

    def give_up(self, number: int, reason: str) -> Executor | None:
        """Treat one as gone; None: it is."""
        executor = self.executors.pop(number, None)
        if executor is not None:
            del self._of_stream[executor.stream]
            self.trouble = f"executor {number} is given up: {reason}"
        return executor

    @property
    def infos(self) -> list[EngineInfo]:
        """What each says of itself."""
        return [executor.info for executor in self.executors.values()]

    @property
    def capacity(self) -> Capacity:
        """What gateways and admission are told."""
        executors = self.executors.values()
        return Capacity(
            num_executors=len(executors),
            kv_tokens=sum(executor.kv_tokens for executor in executors),
            max_sequence_tokens=max((executor.max_sequence_tokens for executor in executors), default=0),
            counts_ends=True,
            resumes=True,
            trouble=self.trouble,
        )

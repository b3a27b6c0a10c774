"""What messages are made of: their base, and structs that are part of one and never sent alone. Never imports torch."""

import msgspec
import numpy as np

from engine.interface import Logprobs


class Message(msgspec.Struct, tag=True, tag_field="t", omit_defaults=True):
    """Anything that crosses a stream after the handshake."""


class LogprobColumns(msgspec.Struct, omit_defaults=True):
    """engine.interface.Logprobs with arrays as bytes; part of a message about as many rows as `num_entries` has."""

    num_entries: bytes
    """int8 each."""
    tokens: bytes
    """int32 each."""
    values: bytes
    """float32 each."""

    @classmethod
    def pack(cls, logprobs: Logprobs | None) -> "LogprobColumns | None":
        """None where nobody asked for any."""
        if logprobs is None:
            return None
        return cls(logprobs.num_entries.tobytes(), logprobs.tokens.tobytes(), logprobs.values.tobytes())

    def unpack(self, num_rows: int) -> Logprobs:
        """The arrays of a message about this many rows.

        Raises:
            ValueError: they are of another number of rows, or do not fit each other.
        """
        num_entries = np.frombuffer(self.num_entries, np.int8)
        tokens, values = np.frombuffer(self.tokens, np.int32), np.frombuffer(self.values, np.float32)
        total = int(num_entries.sum())
        if len(num_entries) != num_rows or (num_entries < 0).any() or not len(tokens) == len(values) == total:
            raise ValueError(
                f"log-probabilities of {len(num_entries)} rows where there are {num_rows}, with {len(tokens)} tokens "
                f"and {len(values)} values where there should be {total}"
            )
        return Logprobs(num_entries, tokens, values)


class Levels(msgspec.Struct, omit_defaults=True):
    """How full a service is; part of the `Capacity` that it tells gateways once a second. What grows is since start."""

    blocks: int = 0
    """Of all executors' KV pools."""
    used_blocks: int = 0
    block_tokens: int = 0
    """Tokens in a block of the first executor; 0: there is none."""
    num_waiting: int = 0
    """Sequences at the scheduler without blocks."""
    num_prefilling: int = 0
    num_decoding: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    step_s: float = 0.0
    """Time in steps, together."""
    prefill_tokens: int = 0
    decode_tokens: int = 0
    queued: dict[str, int] = {}
    """Requests that wait at admission, by the class they would be released under."""
    troubles: list[str] = []
    """What the service cannot keep at the moment, in sentences."""


class Measured(msgspec.Struct, omit_defaults=True):
    """How a request went, as the scheduler saw it; part of its `RequestEnded` to the gateway, which records it."""

    slo_class: str
    ttft_s: float | None = None
    """Since it arrived at admission; None: it got no token."""
    gaps: bytes = b""
    """Times between its tokens (`services.traffic.gaps`)."""
    key_tokens: int = 0
    prompt_keys: bytes = b""
    """Both as in `policies.events.Released`."""

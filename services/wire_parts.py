"""What messages are made of: their base, bounds of their fields, and structs that are part of one and never sent alone.

The bounds are the boundary: a message that decodes is one that a core can be told, whatever its sender meant. They are
wide: what an honest neighbour could ever say must pass. Never imports torch.
"""

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from engine.interface import Logprobs

Id = Annotated[int, Meta(ge=0, lt=2**62)]
"""Of a request, a sequence, a step; an epoch, a revision. Fits int64 with room for the choices of a request."""
Revision = Annotated[int, Meta(ge=1, lt=2**31)]
"""Of a policy; they count from 1."""
Count = Annotated[int, Meta(ge=0, lt=2**31)]
"""Fits int32."""
Sum = Annotated[int, Meta(ge=0, lt=2**40)]
"""Of counts, over the choices of a request. Many of them together still fit what a store can count."""
Total = Annotated[int, Meta(ge=0, le=2**60)]
"""Of counts, or of bytes."""
Stamp = Annotated[int, Meta(ge=-(2**62), le=2**62)]
"""ns; one that was moved to another clock may lie before its beginning."""
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
"""A duration. Bounds leave out infinity and what is no number, too."""
Share = Annotated[float, Meta(ge=0, le=1e6)]
"""Of a whole."""
Amount = Annotated[float, Meta(ge=-1e300, le=1e300)]
Weight = Annotated[float, Meta(gt=0, le=1e9)]
Name = Annotated[str, Meta(max_length=1024)]
"""Of a tenant, a class, a cause; a header."""
Words = Annotated[str, Meta(max_length=2**20)]
"""A sentence for somebody."""


def check_columns(what: str, num_rows: int, columns: "dict[str, tuple[bytes, int]]") -> None:
    """Whether arrays are about the same rows: name -> (bytes, item size).

    Raises:
        ValueError: one is not; msgspec makes a `ValidationError` of it.
    """
    for name, (data, item_bytes) in columns.items():
        if len(data) != num_rows * item_bytes:
            raise ValueError(f"{what} has {len(data)} bytes of `{name}`, {num_rows * item_bytes} would be right")


def num_items(name: str, data: bytes, item_bytes: int) -> int:
    """How many items of this size.

    Raises:
        ValueError: no whole number of them.
    """
    number, rest = divmod(len(data), item_bytes)
    if rest:
        raise ValueError(f"`{name}` has {len(data)} bytes, which is no multiple of {item_bytes}")
    return number


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
        if len(self.tokens) % 4 or len(self.values) % 4:
            raise ValueError(f"{len(self.tokens)} and {len(self.values)} bytes are no whole tokens and values")
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

    blocks: Total = 0
    """Of all executors' KV pools."""
    used_blocks: Total = 0
    block_tokens: Total = 0
    """Tokens in a block of the first executor; 0: there is none."""
    num_waiting: Total = 0
    """Sequences at the scheduler without blocks."""
    num_prefilling: Total = 0
    num_decoding: Total = 0
    num_preemptions: Total = 0
    num_steps: Total = 0
    step_s: Seconds = 0.0
    """Time in steps, together."""
    prefill_tokens: Total = 0
    decode_tokens: Total = 0
    queued: dict[Name, Total] = {}
    """Requests that wait at admission, by the class they would be released under."""
    troubles: list[str] = []
    """What the service cannot keep at the moment: `what: sentence` each."""


class Measured(msgspec.Struct, omit_defaults=True):
    """How a request went, as the scheduler saw it; part of its `RequestEnded` to the gateway, which records it."""

    slo_class: Name
    ttft_s: Seconds | None = None
    """Since it arrived at admission; None: it got no token."""
    gaps: bytes = b""
    """Times between its tokens (`services.traffic.gaps`)."""
    key_tokens: Total = 0
    prompt_keys: bytes = b""
    """Both as in `policies.events.Released`."""

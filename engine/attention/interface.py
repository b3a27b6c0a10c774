"""What the decoder asks of attention, and what a step's rows look like to a backend."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Rows(NamedTuple):
    """The rows of a step, those of one token first and among them shorter contexts first.

    A row's queries are its last `num_tokens` positions of `contexts`; queries lie flat in row order.
    """

    num_decodes: int
    """Rows of one token."""
    num_tokens: NDArray[np.int64]
    contexts: NDArray[np.int64]
    """Tokens each row sees: all before the step and its own."""
    tables: NDArray[np.int64]
    """Block ids [rows, blocks], scratch block where a row has fewer."""


class StepAttention(Protocol):
    """Attention of one step: what all layers share was computed once."""

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """[tokens, heads, head_dim] to the same shape; keys and values of the step are in the cache already."""


class Attention(Protocol):
    """A backend."""

    name: str

    def plan(self, rows: Rows) -> StepAttention:
        """Prepare a step."""


class SteadyDecodes(StepAttention, Protocol):
    """Decodes of a fixed shape whose rows change: a graph captured with them goes on reading the same memory."""

    def fill(self, rows: Rows) -> None:
        """Decode these rows next, at most as many and as wide as the shape; the rest of it decodes the scratch block.

        Returns at once: the contents reach the device after the work it was given before.
        """


@runtime_checkable
class GraphAttention(Attention, Protocol):
    """A backend whose decodes can be captured in a graph."""

    def steady(self, num_rows: int, num_blocks: int) -> SteadyDecodes:
        """For `num_rows` decodes of at most `num_blocks` blocks each; the same object when asked again."""

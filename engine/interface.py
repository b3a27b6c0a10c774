"""What an engine is asked and what it answers. Torch-free: services import it without loading a tensor library."""

from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

MAX_LOGPROBS = 20
"""Most alternatives whose log-probabilities can be asked for at each position."""


TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
"""int32, as everywhere."""
SequenceId = Annotated[int, Meta(ge=0, lt=2**62)]

POOLINGS = ("mean", "last")
"""How hidden states after the final norm become an embedding: the mean of all tokens, or that of the last token."""


class Sampling(msgspec.Struct, omit_defaults=True):
    """How a sequence's next token is chosen. `temperature` 0 is greedy; `engine.sampling` says in which order.

    Random numbers depend on (`seed`, output position) alone, so a request's tokens do not depend on its batch mates.
    Token ids are of the model's vocabulary; whoever takes requests checks them.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """0: all tokens."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens (benchmarks)."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Least probability of a token, as a share of the likeliest one's."""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    """Taken once from the logit of each token of the output so far."""
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    """Taken from a token's logit as often as it is in the output so far."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e9)] = 1.0
    """Positive logits of tokens in prompt or output are divided by it, others multiplied (Keskar et al., 2019)."""
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-1e9, le=1e9)]] = {}
    """Token id -> what is added to its logit."""
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """Output tokens before one may be sampled that ends the sequence."""
    stop_token_ids: tuple[TokenId, ...] = ()
    """End the sequence as end-of-sequence tokens do, whatever `ignore_eos` says."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Alternatives to give log-probabilities of, beside the sampled token's own; None: none at all."""


class SequenceStart(msgspec.Struct):
    """A sequence new to the engine, or back after a preemption."""

    sequence: SequenceId
    tokens: bytes
    """Prompt and kept output token ids, int32 little-endian."""
    num_prompt_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    sampling: Sampling
    grammar: str = ""
    """What the output's text must keep to, as `engine.grammar.lark` writes it; empty: anything."""
    pooling: str = ""
    """One of `POOLINGS`: the vector that the step which ends the prompt gives; empty: none."""

    def __post_init__(self) -> None:
        """Raises ValueError: the tokens are no whole ones, or fewer than the prompt's."""
        if len(self.tokens) % 4 or len(self.tokens) < 4 * self.num_prompt_tokens:
            raise ValueError(f"{len(self.tokens)} bytes of tokens, {self.num_prompt_tokens} tokens of prompt")


NO_BLOCKS: NDArray[np.int32] = np.empty(0, np.int32)


class Step(msgspec.Struct):
    """One forward pass over rows of any length, prefill chunks and decodes alike.

    Arrays over rows: `sequences` int64, `positions` int32, `num_tokens` int32, `samples` bool, `num_new_blocks` int32;
    `new_blocks` int32 flat in row order, appended to each row's block table before the pass. Block ids start at 0 as
    the scheduler counts them; an engine that keeps a scratch block shifts them itself. A block may be in several
    tables; a row may begin at a position past 0, behind what others have computed.
    Before the pass the blocks `copied` int32 are copied to `copies` int32: all are read before any is written.
    A row at `positions == known tokens` is a decode: its input is the token sampled last, which never left the device.
    """

    step: int
    sequences: NDArray[np.int64]
    positions: NDArray[np.int32]
    num_tokens: NDArray[np.int32]
    samples: NDArray[np.bool_]
    num_new_blocks: NDArray[np.int32]
    new_blocks: NDArray[np.int32]
    starts: list[SequenceStart]
    released: list[int]
    copied: NDArray[np.int32] = NO_BLOCKS
    copies: NDArray[np.int32] = NO_BLOCKS


class Logprobs(msgspec.Struct):
    """Log-probabilities of the model's own distribution: of raw logits, before temperature, penalties or masks.

    The entries of all rows that asked, flat in row order: of each the sampled token, then the likeliest tokens in
    descending order, the sampled one possibly among them.
    """

    num_entries: NDArray[np.int8]
    """Of each sampling row; 0 where none were asked for."""
    tokens: NDArray[np.int32]
    values: NDArray[np.float32]
    """Natural logarithms."""

    def of(self, rows: NDArray[np.integer[Any]]) -> "Logprobs | None":
        """Of some of the rows, in their order; None where none of these asked."""
        num_entries = self.num_entries[rows]
        total = int(num_entries.sum())
        if not total:
            return None
        begins = np.cumsum(self.num_entries, dtype=np.int64) - self.num_entries
        ends = np.cumsum(num_entries, dtype=np.int64)
        taken = np.arange(total) + np.repeat(begins[rows] - (ends - num_entries), num_entries)
        return Logprobs(num_entries, self.tokens[taken], self.values[taken])


class StepOutput(msgspec.Struct):
    """Tokens of the sampling rows, in row order, and when they were computed."""

    step: int
    tokens: NDArray[np.int32]
    ended: NDArray[np.bool_]
    """The token ends its sequence: it is the model's end of sequence and not ignored, or a stop token."""
    launched_ns: int
    """`time.monotonic_ns()` when the pass was given to the device."""
    computed_ns: int
    """When its tokens were on the host."""
    failed: dict[int, str] = {}
    """Sequences that cannot go on, and why: their tokens mean nothing, those of the other rows are right."""
    logprobs: Logprobs | None = None
    """None: no row asked for any."""
    vectors: dict[int, NDArray[np.float32]] = {}
    """Embeddings [hidden] of the sequences that asked for one and whose prompt ended in this step."""


class EngineInfo(msgspec.Struct):
    """What an engine has to offer, said once at start."""

    model: str
    architecture: str
    num_parameters: Annotated[int, Meta(ge=0, le=2**60)]
    dtype: str
    device: str
    attention: str
    num_blocks: Annotated[int, Meta(ge=1, le=2**24)]
    """Blocks the scheduler may allocate, numbered from 0."""
    block_tokens: Annotated[int, Meta(ge=1, le=2**16)]
    max_sequence_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    vocabulary_size: Annotated[int, Meta(ge=1, lt=2**31)]
    max_steps_in_flight: Annotated[int, Meta(ge=1, le=8)] = 2
    kv_bytes: Annotated[int, Meta(ge=0, le=2**60)] = 0
    """Memory of the KV pool."""
    kv_bound: str = ""
    """What kept the pool from being larger, in words."""
    copies_blocks: bool = False
    """It does what `Step.copied` asks for."""


class Engine(Protocol):
    """Runs steps in the order given."""

    info: EngineInfo

    def launch(self, step: Step) -> None:
        """Start a step; returns once the device has it (on a CPU: once it is computed)."""

    def collect(self) -> StepOutput:
        """Wait for the oldest launched step and return its tokens.

        Raises:
            RuntimeError: nothing was launched.
        """

    def forget(self, sequences: list[int]) -> None:
        """Drop the state of sequences that ended while no step was to run."""


class EngineError(Exception):
    """The engine cannot do what was asked; the sentence says what is wrong and what is supported."""


class GraphSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """CUDA graphs of decode steps."""

    enable: Annotated[str, Meta(pattern=r"^(auto|off)$")] = "auto"
    """auto: on CUDA, where the attention backend allows it."""
    decode_buckets: tuple[Annotated[int, Meta(ge=1)], ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of rows that a step is padded to, ascending; larger steps run without a graph."""
    prepared_tokens: Annotated[int, Meta(ge=1)] = 2048
    """Graphs for contexts up to this are recorded at start, others when first needed."""

    def __post_init__(self) -> None:
        if not self.decode_buckets or list(self.decode_buckets) != sorted(set(self.decode_buckets)):
            raise ValueError(f"decode_buckets must be ascending and not empty, these are {list(self.decode_buckets)}")


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `engine:` section of deployment.yaml: read once at start."""

    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Annotated[str, Meta(pattern=r"^(auto|float32|bfloat16|float16)$")] = "auto"
    """auto: float32 on CPU, the checkpoint's own on CUDA."""
    attention: Annotated[
        str, Meta(pattern=r"^(auto|cpu_paged|cpu_gather|sdpa_gather|xformers_splitk|varlen_paged)$")
    ] = "auto"
    kv_block_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens in a KV block; 0: 16, with xformers_splitk 64, with varlen_paged 256."""
    kv_pool_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens of KV memory; 0: what fits in `kv_memory` of the free memory, on a CPU at most 1 GiB and 64 sequences."""
    kv_memory: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """The part of the memory free after the weights that the KV pool may take."""
    max_sequence_tokens: Annotated[int, Meta(ge=0)] = 0
    """Context length offered; 0: the model's own."""
    graphs: GraphSettings = GraphSettings()
    threads: Annotated[int, Meta(ge=0)] = 0
    """torch intra-op threads; 0: one for each core."""
    max_steps_in_flight: Annotated[int, Meta(ge=1, le=2)] = 2
    kind: Annotated[str, Meta(pattern=r"^(torch|paced)$")] = "torch"
    """paced: a synthetic engine that samples pseudo-random tokens at `paced_step_s` (benchmarks; no weights)."""
    paced_step_s: Annotated[float, Meta(ge=0)] = 0.02
